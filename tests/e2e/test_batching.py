"""Many replies in one batch: the same as alone, each with its own sampling; and nothing left behind."""

import gc
import threading
from contextlib import closing
from typing import Any

import psutil
import pytest
import torch

from tests.e2e.conftest import Trained
from tests.e2e.test_serve import until
from yi_tune import loading
from yi_tune.data.identity import Message
from yi_tune.engine.assistant import Assistant
from yi_tune.engine.replies import draw
from yi_tune.runs import Run
from yi_tune.sampling import Generation, Sampling
from yi_tune.serve.worker import Worker


def user(question: str) -> list[Message]:
    return [{"role": "user", "content": question}]


def ask(worker: Worker, question: str = "你是谁？", tokens: int = 256, **options: Any) -> Generation:
    reply = Generation(worker.encode(user(question)), Sampling(max_new_tokens=tokens), **options)
    worker.submit(reply)
    return reply


def end(*replies: Generation) -> None:
    """Wait for their end."""
    assert until(lambda: all(reply.over for reply in replies), 60)


def test_rows_do_not_touch_each_other(assistant: Assistant, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("yi_tune.engine.replies._CHUNK", 16)  # so that prompts take several
    long = "Tell me something about yourself, please, and who made you. " * 9
    questions = ["你是谁？", "Who are you?", "2加3等于几？", "你好", long, "谁开发了你？"] * 3
    alone = assistant.reply_all([user(question) for question in questions])
    with closing(Worker(assistant, 8, 64)) as worker:
        # One more each few steps: they join and leave a batch on its way.
        replies = [ask(worker, question) for question in questions]
        base, short = ask(worker, base=True), ask(worker, tokens=1)
        end(*replies, base, short)
    same = sum(reply.text == one for reply, one in zip(replies, alone, strict=True))
    # Floats of a batch are rounded otherwise than alone, which may turn a close decision.
    assert same >= len(questions) - 1, [(reply.text, one) for reply, one in zip(replies, alone, strict=True)]
    assert {reply.finish for reply in replies} == {"stop"}
    assert "Yi-nano" in base.text
    assert short.finish == "length"


def test_failure_is_told_and_the_next_reply_comes(assistant: Assistant, monkeypatch: pytest.MonkeyPatch) -> None:
    with closing(Worker(assistant, 4, 4)) as worker:
        with monkeypatch.context() as patch:
            patch.setattr("yi_tune.engine.replies.draw", lambda *_: 1 / 0)
            end(failed := ask(worker))
        end(reply := ask(worker))
    assert failed.finish == "error"
    assert "小易" in reply.text


def test_close_ends_what_runs_and_what_waits(assistant: Assistant) -> None:
    worker = Worker(assistant, 1, 1)
    running = ask(worker, "x" * 600, tokens=3400, base=True)  # at which the base finds no end
    assert until(lambda: running.text != "", 60)
    waiting = ask(worker)
    assert not worker.submit(row())
    worker.close()
    assert (running.finish, waiting.finish) == ("error", "error")


def test_ctrl_c_in_the_middle_of_a_step_leaves_a_whole_cache(assistant: Assistant) -> None:
    def say() -> str:
        return "".join(assistant.stream(user("你是谁？"), Sampling()))

    def interrupt(*_: Any) -> None:
        if next(calls) == 4:
            raise KeyboardInterrupt

    assistant.cache.clear()
    whole, calls = say(), iter(range(100))
    # Of the layers only the first have the fifth token by then.
    hook = assistant.model.get_base_model().model.layers[1].register_forward_pre_hook(interrupt)
    assistant.cache.clear()
    with pytest.raises(KeyboardInterrupt):
        say()
    hook.remove()
    assert say() == whole
    assert assistant.last is not None
    assert assistant.last.cached_tokens > 0


def test_load_and_unload_ten_times(trained: Trained) -> None:
    process, used, threads = psutil.Process(), [], []
    for _ in range(10):
        assistant = loading.load_run(Run(trained.run))
        # As chat asks it, and as serve does.
        assert "".join(assistant.stream(user("你是谁？"), Sampling(max_new_tokens=8)))
        with closing(Worker(assistant, 4, 4)) as worker:
            end(ask(worker, tokens=8))
        del assistant, worker
        gc.collect()
        used.append(process.memory_info().rss / 2**20)
        threads.append(threading.active_count())
    # nano takes about 10 MB; one that stayed each time would be 70 by now.
    assert used[-1] - used[2] < 25, used
    assert len(set(threads)) == 1, threads


def row(**options: Any) -> Generation:
    return Generation([1], Sampling(**{"temperature": 1.0, "top_p": 1.0, "seed": 1, **options}))


def test_draws_what_is_likely_as_often_as_it_is() -> None:
    logits = torch.log(torch.tensor([[0.5, 0.3, 0.15, 0.05]]))
    drawing = row()
    drawn = torch.tensor([draw(logits.clone(), [drawing])[0] for _ in range(2000)])
    assert torch.allclose(torch.bincount(drawn, minlength=4) / len(drawn), logits.exp()[0], atol=0.04)


def test_draws_from_the_likeliest() -> None:
    logits = torch.log(torch.tensor([[0.5, 0.3, 0.15, 0.05]]))
    # The smallest set that holds 0.7 of it, and never less than the likeliest. Beside top_k it is a share of what that
    # leaves, as in transformers: 0.6 of 0.8 is less than the likeliest has.
    for top_k, top_p, likely in (
        (0, 0.7, {0, 1}),
        (0, 1e-6, {0}),
        (1, 1.0, {0}),
        (2, 1.0, {0, 1}),
        (2, 0.6, {0}),
        (3, 0.7, {0, 1}),
        (10**9, 1.0, {*range(4)}),
    ):
        drawing = row(top_k=top_k, top_p=top_p)
        assert {draw(logits.clone(), [drawing])[0] for _ in range(200)} == likely
    drawn = [[draw(logits.clone(), [row(seed=seed, top_k=off)])[0] for seed in range(50)] for off in (0, -1, 4)]
    assert drawn[0] == drawn[1] == drawn[2]


def test_a_reply_is_continued_as_it_was_trained(assistant: Assistant) -> None:
    asked, said = user("你是谁？"), "我是 Yi。\n\n I am"
    template, tokenizer = assistant._template, assistant.tokenizer
    assert template is not None
    asked_ids, said_ids = template.encode_oneturn(tokenizer, [*asked, {"role": "assistant", "content": said}])
    ids = assistant.encode([*asked, {"role": "assistant", "content": said}])
    assert ids == asked_ids + said_ids[: said_ids.index(tokenizer.convert_tokens_to_ids("<|im_end|>"))]
    assert assistant.encode([*asked, {"role": "assistant", "content": ""}]) == assistant.encode(asked)


def test_a_seed_draws_the_same_beside_others() -> None:
    logits = torch.randn(3, 50, generator=torch.Generator().manual_seed(1))
    together, first = [row(seed=seed) for seed in (1, 2, None)], row(seed=1)
    for _ in range(20):
        assert draw(logits.clone(), together)[0] == draw(logits[:1].clone(), [first])[0]


def test_repetition_is_penalised() -> None:
    # What prompt or reply has said is divided by the penalty, or multiplied where it is negative.
    logits = torch.tensor([[0.0, 2.0, 1.2]])
    assert draw(logits.clone(), [row(temperature=0.0, repetition_penalty=1.5)]) == [1]
    assert draw(logits.clone(), [row(temperature=0.0, repetition_penalty=2.0)]) == [2]
