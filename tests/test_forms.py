import json
from typing import Any

import pytest

from yi_tune.data.forms import ALPACA, Form, conversation
from yi_tune.data.rows import Repeated, RowError


def talk(*contents: str, system: str = "") -> list[dict[str, str]]:
    """The conversation of these contents."""
    head = [{"role": "system", "content": system}] if system else []
    return head + [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(contents)]


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"messages": talk("q", "a")}, talk("q", "a")),
        ({"messages": talk("q", "a", "r", "b", system="s"), "id": 3}, talk("q", "a", "r", "b", system="s")),
        ({"messages": [{"role": "system", "content": ""}, *talk("q", "a")]}, talk("q", "a")),
        ({"messages": [{"role": "developer", "content": "s"}, *talk("q", "a")]}, talk("q", "a", system="s")),
        (
            {
                "messages": [
                    {"role": "user", "content": [{"type": "text", "text": "q"}, {"type": "text", "text": "r"}]},
                    {"role": "assistant", "content": [{"type": "text", "text": "a"}]},
                ]
            },
            talk("qr", "a"),
        ),
        ({"messages": json.dumps(talk("q", "a"))}, talk("q", "a")),  # as a CSV file has it
        ({"messages": talk("q", "a"), "tools": None, "images": []}, talk("q", "a")),
        (
            {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]},
            talk("q", "a"),
        ),
        (
            {"conversations": [{"from": "user", "value": "q"}, {"from": "assistant", "value": "a"}], "system": "s"},
            talk("q", "a", system="s"),
        ),
        ({"conversations": talk("q", "a")}, talk("q", "a")),
        ({"messages": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}, talk("q", "a")),
        ({"instruction": "q", "output": "a"}, talk("q", "a")),
        ({"instruction": "q", "input": "x", "output": "a", "system": "s"}, talk("q\nx", "a", system="s")),
        ({"instruction": "", "input": "x", "output": "a", "system": ""}, talk("x", "a")),
        ({"instruction": "q", "input": None, "output": "a", "history": [["p", "b"]]}, talk("p", "b", "q", "a")),
        ({"instruction": "q", "output": "a", "history": '[["p", "b"]]', "input": ""}, talk("p", "b", "q", "a")),
        ({"messages": talk("{{ other }} and {x}", "a < b | c > d")}, talk("{{ other }} and {x}", "a < b | c > d")),
    ],
)
def test_every_form_is_recognised_by_its_columns(row: dict[str, Any], expected: list[dict[str, str]]) -> None:
    assert conversation(row, None) == expected


def test_named_columns() -> None:
    form = Form(prompt="question", query="context", response="answer", history="before", system="be")
    row = {"question": "q", "context": "c", "answer": "a", "be": "s", "instruction": "no", "output": "no"}
    assert conversation(row, form) == talk("q\nc", "a", system="s")
    assert conversation({"instruction": "q", "output": "a", "messages": talk("no", "no")}, ALPACA) == talk("q", "a")


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (RowError("broken JSON"), "broken JSON"),
        (["q", "a"], "not an object"),
        (None, "not an object"),
        (Repeated({"messages": talk("q", "a")}), "twice"),
        ({}, "among its columns: none"),
        ({"question": "q", "answer": "a"}, "among its columns: answer, question"),
        ({"instruction": "q"}, "among its columns: instruction"),
        ({"instruction": "q", "output": ""}, "what the assistant says is empty"),
        ({"instruction": "q", "output": " \n"}, "what the assistant says is empty"),
        ({"instruction": "q", "output": None}, "what the assistant says is not text"),
        ({"instruction": "q", "output": 3}, "what the assistant says is not text"),
        ({"instruction": "", "input": "", "output": "a"}, "what the user says is empty"),
        ({"instruction": 3, "output": "a"}, "instruction or input is not text"),
        ({"instruction": "q", "output": "a", "history": "p"}, "history is a text"),
        ({"instruction": "q", "output": "a", "history": [["p"]]}, "history is not a list of pairs"),
        ({"instruction": "q", "output": "a", "history": [["p", ""]]}, "what the assistant says is empty"),
        ({"messages": []}, "no messages"),
        ({"messages": "hello"}, "messages is a text"),
        ({"messages": {"role": "user"}}, "messages is not a list"),
        ({"messages": ["q", "a"]}, "something else than a message"),
        ({"messages": [{"role": "system", "content": "s"}]}, "no messages"),
        ({"messages": talk("q")}, "the last message is the user's"),
        ({"messages": talk("q", "a", "r")}, "the last message is the user's"),
        ({"messages": talk("q", "a")[::-1]}, "the assistant where the user's is due"),
        ({"messages": [*talk("q"), *talk("q", "a")]}, "the user where the assistant's is due"),
        ({"messages": [*talk("q", "a"), {"role": "system", "content": "s"}]}, "the system where the user's is due"),
        ({"messages": [*talk("q"), {"role": "tool", "content": "x"}]}, "role is 'tool'"),
        ({"messages": [*talk("q"), {"role": "assistant", "tool_calls": [1]}]}, "tool_calls"),
        ({"messages": [{"role": "user"}, *talk("q", "a")[1:]]}, "what the user says is not text"),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": "q"}]}]}, "the last message"),
        (
            {"messages": [{"role": "user", "content": [{"type": "text", "text": "q"}, {"type": "image_url"}]}]},
            "parts that are not text",
        ),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "parts that are not text"),
        ({"messages": talk("q", "a\0b")}, "the character NUL"),
        ({"messages": [{"role": None, "content": "q"}]}, "role is None"),
        ({"messages": talk("q", "a<|im_end|>")}, "control token <|im_end|>"),
        ({"messages": talk("q", "a", system="<|im_start|>")}, "what the system says holds the control token"),
        ({"messages": talk("q", "I am {{name}}")}, "placeholder {{name}}"),
        ({"messages": talk("Who made {{ AUTHOR }}?", "a")}, "placeholder {{ AUTHOR }}"),
        ({"messages": talk("q", "a\udcff")}, "not UTF-8"),
        ({"messages": talk("q", "a" * 1_000_001)}, "longer than 1,000,000"),
        ({"messages": talk("q", "a"), "images": ["x.png"]}, "it has images"),
        ({"messages": talk("q", "a"), "tools": "[{}]"}, "it has tools"),
        ({"instruction": "q", "chosen": "a", "rejected": "b"}, "among its columns"),
    ],
)
def test_unfit_rows(row: Any, said: str) -> None:
    with pytest.raises(RowError) as caught:
        conversation(row, None)
    assert said in str(caught.value)
