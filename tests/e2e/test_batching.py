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
from yi_tune.engine.batching import Batcher
from yi_tune.engine.drawing import Drawing, draw
from yi_tune.runs.folder import Run
from yi_tune.sampling import Sampling
from yi_tune.serve.generation import Generation, Piece, QueueFullError


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


def ask(batcher: Batcher, question: str, max_new_tokens: int = 256, **options: Any) -> tuple[Reply, Generation]:
    reply = Reply()
    prompt = batcher.encode_chat([{"role": "user", "content": question}])
    generation = Generation(prompt, max_new_tokens, reply, **options)
    batcher.submit([generation])
    return reply, generation


@pytest.fixture(scope="module")
def assistant(trained: Trained) -> Assistant:
    return loading.load_run(Run(trained.run))


def test_rows_do_not_touch_each_other(assistant: Assistant, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("yi_tune.engine.batching._CHUNK", 16)  # so that prompts take several
    questions = [
        "你是谁？",
        "Who are you?",
        "2加3等于几？",
        "你好",
        "Tell me something about yourself, please, and who made you. " * 9,
        "谁开发了你？",
    ] * 3
    alone = assistant.reply_all([[{"role": "user", "content": question}] for question in questions])
    batcher = Batcher(assistant, 8, 64)
    try:
        # One more each few steps: they join and leave a batch on its way.
        replies = [ask(batcher, question)[0] for question in questions]
        base = ask(batcher, "你是谁？", base=True)[0]
        for reply in [*replies, base]:
            assert reply.ended.wait(60)
        same = sum(reply.text == one for reply, one in zip(replies, alone, strict=True))
        # Floats of a batch are rounded otherwise than alone, which may turn a close decision.
        assert same >= len(questions) - 1, [(reply.text, one) for reply, one in zip(replies, alone, strict=True)]
        assert "Yi-nano" in base.text
        assert {reply.finish for reply in replies} == {"stop"}
        whole = ask(batcher, "你是谁？", stream=False)[0]
        assert whole.ended.wait(60)
        assert (whole.text, whole.pieces) == (replies[0].text, 1)
        assert replies[0].pieces > 5
        short = ask(batcher, "你是谁？", 1)[0]
        assert short.ended.wait(60)
        assert short.finish == "length"
    finally:
        batcher.close()


def test_failure_is_told_and_the_next_reply_comes(assistant: Assistant, monkeypatch: pytest.MonkeyPatch) -> None:
    batcher = Batcher(assistant, 4, 4)
    try:
        with monkeypatch.context() as patch:
            patch.setattr("yi_tune.engine.batching.draw", lambda *_: 1 / 0)
            failed = ask(batcher, "你是谁？")[0]
            assert failed.ended.wait(60)
        assert failed.finish == "error"
        reply = ask(batcher, "你是谁？")[0]
        assert reply.ended.wait(60)
        assert "小易" in reply.text
        assert batcher.alive
    finally:
        batcher.close()


def test_close_ends_what_runs_and_what_waits(assistant: Assistant) -> None:
    batcher = Batcher(assistant, 1, 1)
    running = ask(batcher, "你是谁？", 4000, temperature=2.0)[0]
    assert running.begun.wait(60)
    waiting = ask(batcher, "你是谁？")[0]
    with pytest.raises(QueueFullError):
        ask(batcher, "你是谁？")
    batcher.close()
    assert (running.finish, waiting.finish) == ("error", "error")
    assert not batcher.alive


def test_load_and_unload_ten_times(trained: Trained) -> None:
    process, used, threads = psutil.Process(), [], []
    for _ in range(10):
        assistant = loading.load_run(Run(trained.run))
        # As chat asks it, and as serve does.
        assert "".join(assistant.stream([{"role": "user", "content": "你是谁？"}], Sampling(max_new_tokens=8)))
        batcher = Batcher(assistant, 4, 4)
        reply = ask(batcher, "你是谁？", 8)[0]
        assert reply.ended.wait(60)
        batcher.close()
        del assistant, batcher, reply
        gc.collect()
        used.append(process.memory_info().rss / 2**20)
        threads.append(threading.active_count())
    # nano takes about 10 MB; one that stayed each time would be 70 by now.
    assert used[-1] - used[2] < 25, used
    assert len(set(threads)) == 1, threads


def generation(**options: Any) -> Generation:
    return Generation([1], 1, lambda _: None, **options)


def test_draws_what_is_likely_as_often_as_it_is() -> None:
    logits = torch.log(torch.tensor([0.5, 0.3, 0.15, 0.05]))
    drawing = Drawing(generation(temperature=1.0, seed="1"))
    drawn = torch.tensor([draw(logits.clone().unsqueeze(0), [drawing])[0] for _ in range(2000)])
    shares = torch.bincount(drawn, minlength=4) / len(drawn)
    assert torch.allclose(shares, torch.tensor([0.5, 0.3, 0.15, 0.05]), atol=0.04)
    # The smallest set that holds 0.7 of it.
    drawing = Drawing(generation(temperature=1.0, top_p=0.7, seed="1"))
    assert {draw(logits.clone().unsqueeze(0), [drawing])[0] for _ in range(200)} == {0, 1}
    drawing = Drawing(generation(temperature=1.0, top_p=0.0, seed="1"))
    assert {draw(logits.clone().unsqueeze(0), [drawing])[0] for _ in range(50)} == {0}


def test_a_seed_draws_the_same_beside_others() -> None:
    logits = torch.randn(3, 50, generator=torch.Generator().manual_seed(1))

    def drawings() -> list[Drawing]:
        return [Drawing(generation(temperature=1.0, seed=seed)) for seed in ("a", "b", None)]

    together, first = drawings(), drawings()[0]
    for _ in range(20):
        assert draw(logits.clone(), together)[0] == draw(logits[:1].clone(), [first])[0]


def test_penalties_are_openais() -> None:
    drawing = Drawing(generation(presence_penalty=1.0, frequency_penalty=0.5))
    logits = torch.tensor([[2.0, 1.2, 0.0]])
    # Once said, the first is at 0.5, the second at -0.3; twice said, the first is at 0.0 with the third.
    assert [draw(logits.clone(), [drawing])[0] for _ in range(3)] == [0, 1, 0]
    last = logits.clone()
    draw(last, [drawing])
    assert torch.allclose(last, torch.tensor([[0.0, -0.3, 0.0]]))
