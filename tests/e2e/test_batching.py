"""Many replies in one batch: the same as alone, each with its own sampling; and nothing left behind."""

import gc
import threading
from typing import Any

import psutil
import pytest
import torch

from tests.e2e.conftest import Trained
from yi_tune import loading
from yi_tune.engine.assistant import Assistant
from yi_tune.engine.replies import draw
from yi_tune.runs import Run
from yi_tune.sampling import Generation, Piece, Sampling
from yi_tune.serve.worker import Worker


class Reply:
    """Where the pieces of a reply go."""

    def __init__(self) -> None:
        self.text = ""
        self.pieces = 0
        self.finish: str | None = None
        self.begun = threading.Event()
        self.ended = threading.Event()

    def __call__(self, piece: Piece) -> None:
        self.text += piece.text
        self.pieces += 1
        self.finish = piece.finish
        self.begun.set()
        if piece.finish:
            self.ended.set()


def ask(worker: Worker, question: str, max_new_tokens: int = 256, temperature: float = 0.0, **options: Any) -> Reply:
    reply = Reply()
    sampling = Sampling(temperature=temperature, top_p=1.0, max_new_tokens=max_new_tokens)
    worker.submit(Generation(worker.encode([{"role": "user", "content": question}]), sampling, reply, **options))
    return reply


@pytest.fixture(scope="module")
def assistant(trained: Trained) -> Assistant:
    return loading.load_run(Run(trained.run))


def test_rows_do_not_touch_each_other(assistant: Assistant, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("yi_tune.engine.replies._CHUNK", 16)  # so that prompts take several
    questions = [
        "你是谁？",
        "Who are you?",
        "2加3等于几？",
        "你好",
        "Tell me something about yourself, please, and who made you. " * 9,
        "谁开发了你？",
    ] * 3
    alone = assistant.reply_all([[{"role": "user", "content": question}] for question in questions])
    worker = Worker(assistant, 8, 64)
    try:
        # One more each few steps: they join and leave a batch on its way.
        replies = [ask(worker, question) for question in questions]
        base = ask(worker, "你是谁？", base=True)
        for reply in [*replies, base]:
            assert reply.ended.wait(60)
        same = sum(reply.text == one for reply, one in zip(replies, alone, strict=True))
        # Floats of a batch are rounded otherwise than alone, which may turn a close decision.
        assert same >= len(questions) - 1, [(reply.text, one) for reply, one in zip(replies, alone, strict=True)]
        assert "Yi-nano" in base.text
        assert {reply.finish for reply in replies} == {"stop"}
        whole = ask(worker, "你是谁？", stream=False)
        assert whole.ended.wait(60)
        assert (whole.text, whole.pieces) == (replies[0].text, 1)
        assert replies[0].pieces > 5
        short = ask(worker, "你是谁？", 1)
        assert short.ended.wait(60)
        assert short.finish == "length"
    finally:
        worker.close()


def test_failure_is_told_and_the_next_reply_comes(assistant: Assistant, monkeypatch: pytest.MonkeyPatch) -> None:
    worker = Worker(assistant, 4, 4)
    try:
        with monkeypatch.context() as patch:
            patch.setattr("yi_tune.engine.replies.draw", lambda *_: 1 / 0)
            failed = ask(worker, "你是谁？")
            assert failed.ended.wait(60)
        assert failed.finish == "error"
        reply = ask(worker, "你是谁？")
        assert reply.ended.wait(60)
        assert "小易" in reply.text
        assert worker.alive
    finally:
        worker.close()


def test_close_ends_what_runs_and_what_waits(assistant: Assistant) -> None:
    worker = Worker(assistant, 1, 1)
    running = ask(worker, "你是谁？", 4000, temperature=2.0)
    assert running.begun.wait(60)
    waiting = ask(worker, "你是谁？")
    assert not worker.submit(row())
    worker.close()
    assert (running.finish, waiting.finish) == ("error", "error")
    assert not worker.alive


def test_ctrl_c_in_the_middle_of_a_step_leaves_a_whole_cache(assistant: Assistant) -> None:
    question = [{"role": "user", "content": "你是谁？"}]
    assistant.cache.clear()
    whole = "".join(assistant.stream(question, Sampling()))
    calls = iter(range(100))

    def interrupt(*_: Any) -> None:
        if next(calls) == 4:
            raise KeyboardInterrupt

    # Of the layers only the first have the fifth token by then.
    hook = assistant.model.get_base_model().model.layers[1].register_forward_pre_hook(interrupt)
    assistant.cache.clear()
    with pytest.raises(KeyboardInterrupt):
        "".join(assistant.stream(question, Sampling()))
    hook.remove()
    assert "".join(assistant.stream(question, Sampling())) == whole
    assert assistant.last is not None
    assert assistant.last.cached_tokens > 0


def test_load_and_unload_ten_times(trained: Trained) -> None:
    process, used, threads = psutil.Process(), [], []
    for _ in range(10):
        assistant = loading.load_run(Run(trained.run))
        # As chat asks it, and as serve does.
        assert "".join(assistant.stream([{"role": "user", "content": "你是谁？"}], Sampling(max_new_tokens=8)))
        worker = Worker(assistant, 4, 4)
        reply = ask(worker, "你是谁？", 8)
        assert reply.ended.wait(60)
        worker.close()
        del assistant, worker, reply
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
    # The smallest set that holds 0.7 of it; and never less than the likeliest.
    for top_p, likely in ((0.7, {0, 1}), (1e-6, {0})):
        drawing = row(top_p=top_p)
        assert {draw(logits.clone(), [drawing])[0] for _ in range(200)} == likely


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
