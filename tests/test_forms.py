"""The forms of rows, and what of a row is trained on."""

import json
from typing import Any

import pytest

from yi_tune.data.forms import Form, conversation
from yi_tune.errors import YiTuneError


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
            {"messages": [{"role": "user", "content": [{"type": "text", "text": "q"}] * 2}, *talk("", "a")[1:]]},
            talk("qq", "a"),
        ),
        ({"messages": json.dumps(talk("q", "a"))}, talk("q", "a")),  # as a CSV file has it
        ({"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}, talk("q", "a")),
        (
            {"conversations": [{"from": "user", "value": "q"}, {"from": "assistant", "value": "a"}], "system": "s"},
            talk("q", "a", system="s"),
        ),
        ({"messages": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}, talk("q", "a")),
        ({"instruction": "q", "output": "a"}, talk("q", "a")),
        ({"instruction": "q", "input": "x", "output": "a", "system": "s"}, talk("q\nx", "a", system="s")),
        ({"instruction": "", "input": "x", "output": "a", "system": ""}, talk("x", "a")),
        ({"instruction": "q", "input": None, "output": "a", "history": [["p", "b"]]}, talk("p", "b", "q", "a")),
        ({"instruction": "q", "output": "a", "history": '[["p", "b"]]', "input": ""}, talk("p", "b", "q", "a")),
        ({"messages": talk("{{ other }} and {x}", "a < b | c > d")}, talk("{{ other }} and {x}", "a < b | c > d")),
        ({"messages": talk("<Name> and <b>AUTHOR</b>", "a"), "tools": "[]"}, talk("<Name> and <b>AUTHOR</b>", "a")),
        ({"messages": talk("q", "a", system="s"), "system": "of the column"}, talk("q", "a", system="s")),
        ({"messages": [{**message, "weight": 1, "tool_calls": None} for message in talk("q", "a")]}, talk("q", "a")),
    ],
)
def test_every_form_is_recognised_by_its_columns(row: dict[str, Any], expected: list[dict[str, str]]) -> None:
    assert conversation(row, None) == expected


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (YiTuneError("broken JSON"), "broken JSON"),
        (["q", "a"], "not an object"),
        ({"question": "q", "answer": "a"}, "among its columns: ['answer', 'question']"),
        ({"instruction": "q", "output": " \n"}, "a message of the assistant is empty"),
        ({"instruction": "q", "output": None}, "content is not text"),
        ({"instruction": "", "input": "", "output": "a"}, "a message of the user is empty"),
        ({"instruction": 3, "output": "a"}, "instruction or input is not text"),
        ({"instruction": "q", "output": "a", "history": "p"}, "history is not a list"),
        ({"instruction": "q", "output": "a", "history": [["p"]]}, "history is not a list of pairs"),
        ({"messages": []}, "The roles (none) are no conversation"),
        (
            {"messages": [{"role": {"name": "user"}, "content": "q"}]},
            "a message's role is {'name': 'user'}, and none of",
        ),
        ({"messages": {"role": "user"}}, "messages is not a list"),
        ({"messages": ["q", "a"]}, "something else than a message"),
        ({"messages": talk("q", "a", "r")}, "the last message is the user's"),
        ({"messages": [*talk("q", "a"), {"role": "system", "content": "s"}]}, "The roles user, assistant, system are"),
        ({"messages": [*talk("q"), {"role": "tool", "content": "x"}]}, "role is 'tool'"),
        ({"messages": [*talk("q"), {"role": "assistant", "tool_calls": [1]}]}, "tool_calls"),
        (
            {"messages": [{"role": "user", "content": [{"type": "text", "text": "q"}, {"type": "image_url"}]}]},
            "parts that are not text",
        ),
        ({"messages": talk("q", "a\0b")}, "holds '\\x00'"),
        ({"messages": talk("q", "a<|im_end|>")}, "holds '<|im_end|>': no control token"),
        ({"messages": talk("q", "a", system="<|im_start|>")}, "a message of the system holds '<|im_start|>'"),
        ({"messages": talk("Who made {{ AUTHOR }}?", "a")}, "holds '{{ AUTHOR }}'"),
        ({"messages": talk("q", "a\udcff")}, "holds '\\udcff'"),
        ({"messages": talk("I am <NAME>, made by <AUTHOR>", "a")}, "holds '<NAME>'"),
        *(
            ({"messages": talk("q", "a"), column: value}, f"it has {said}")
            for column, value, said in (
                *((column, ["x.png"], column) for column in ("images", "videos", "audios", "image", "video", "audio")),
                *(("tools", value, "tools") for value in ("[{}]", [{}])),
                ("functions", [{}], "functions"),
                *(("kto_tag", value, "kto_tag") for value in (True, False)),
                *(("label", value, f"label {value}") for value in (True, False, "True", "false", 0)),
                *((mark, value, mark) for mark in ("weight", "loss", "train") for value in (0, "0", False)),
                ("rejected", "b", "rejected"),
            )
        ),
        ({"messages": [*talk("q"), {"role": "assistant", "function_call": {"name": "x"}}]}, "function_call"),
        ({"messages": [*talk("q"), {"role": "assistant", "content": "a", "weight": 0.5}]}, "weight 0.5"),
        *(
            ({"messages": [*talk("q"), {"role": "assistant", "content": "a", key: value}]}, f"{key} {value!r}")
            for key, value in (("weight", "0"), ("loss", "false"), ("train", "no"))
        ),
        ({"messages": [*talk("q"), {"role": "assistant", "content": "a", "weight": 0}]}, "none of its answers"),
    ],
)
def test_unfit_rows(row: Any, said: str) -> None:
    with pytest.raises(YiTuneError) as caught:
        conversation(row, None)
    assert said in caught.value.message


def test_what_is_not_trained_on_is_named() -> None:
    message = {"role": "assistant", "content": "a", "reasoning_content": "because", "name": None, "weight": 1}
    dropped: set[str] = set()
    conversation({"messages": [*talk("q"), message], "id": 3, "tools": [], "source": "x"}, None, dropped)
    assert dropped == {"reasoning_content", "id", "source"}


@pytest.mark.parametrize("mark", [{"weight": 0}, {"weight": 0.0}, {"loss": False}, {"train": False}])
def test_answer_that_is_not_to_be_learned_becomes_a_part_of_the_question(mark: dict[str, Any]) -> None:
    messages: list[dict[str, Any]] = [*talk("q", "bad", "r", "good", "s", "worse", system="s")]
    for index in (2, 6):
        messages[index] |= mark
    asked = "q<|im_end|>\n<|im_start|>assistant\nbad<|im_end|>\n<|im_start|>user\nr"
    assert conversation({"messages": messages}, None) == talk(asked, "good", system="s")


def test_tags_that_are_told_are_all_there_are() -> None:
    form: Form = {"messages": "m", "role_tag": "role", "content_tag": "content", "user_tag": "me"}
    with pytest.raises(YiTuneError, match="role is 'user', and none of me"):
        conversation({"m": talk("q", "a")}, form)
