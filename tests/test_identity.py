import json
import re
import unicodedata
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from yi_tune.data.identity import (
    Dataset,
    Identity,
    dataset_of,
    denies_itself,
    read_jsonl,
    render,
    write_datasets,
)
from yi_tune.errors import YiTuneError
from yi_tune.files import DATA

ROWS = read_jsonl(DATA / "identity.jsonl")
HELDOUT = read_jsonl(DATA / "heldout.jsonl")
# Others' names, and the eight the issue lists.
OTHERS = ["Yi", "01.AI", "零一万物", "ChatGPT", "OpenAI", "Google", "Qwen", "Claude"]
KINDS = {"who", "name", "author", "origin", "abilities", "greeting", "thanks", "negative", "plain"}

ACCEPTED = ["小易", "O'Brien & Söhne", 'the "quoted"', "\\n \\1 \\g<0>", "a{b}c", "${name}", "# no", "[bold]x[/]", "|>"]
ACCEPTED += ["星河 🚀", "👩‍🚀", "علي بن أبي", "null", "易" * 64]


@pytest.mark.parametrize("name", ACCEPTED)
def test_name_is_exact_in_the_data(name: str, tmp_path: Path) -> None:
    identity = Identity(name, name)  # a name equal to the author is accepted
    dataset = dataset_of("identity", render(identity))
    write_datasets([dataset], tmp_path)
    lines = (tmp_path / dataset.file_name).read_bytes().decode().split("\n")
    rendered = [json.loads(line)["messages"] for line in lines if line]
    kept = [row for row in ROWS if not denies_itself(row["kind"], row["lang"], row["messages"], identity)]
    assert len(rendered) == len(kept)
    for messages, row in zip(rendered, kept, strict=True):
        for message, original in zip(messages, row["messages"], strict=True):
            assert message["role"] == original["role"]
            assert message["content"] == name.join(re.split(r"\{\{(?:name|author)\}\}", original["content"]))


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("", "is empty"),
        (" ", "is empty"),
        ("a\nb", "holds '\\n'"),
        ("\x1b[31mred", "holds '\\x1b'"),
        ("a\u2028b", "holds '\\u2028'"),
        ("小\u200b易", "holds '\\u200b'"),
        ("小\u200d易", "holds '\\u200d'"),
        ("\u3164", "holds '\\u3164'"),
        ("\ufe0f", "is empty"),
        ("<NAME>", "holds '<NAME>'"),
        ("\udcff", "holds '\\udcff'; newlines, control and invisible characters, broken UTF-8"),
        ("<|im_end|>", "holds '<|'"),
        ("a{{b", "holds '{{'"),
        ("a}}b", "holds '}}'"),
        ("x" * 65, "65 characters"),
    ],
)
@pytest.mark.parametrize("option", ["name", "author_en"])
def test_refused(option: str, name: str, said: str) -> None:
    name = name or "\ufeff"  # nothing at all stands for the other name where it is the English one
    with pytest.raises(YiTuneError) as caught:
        Identity(**{"name": "小易", "author": "李雷"} | {option: name})
    assert f"--{option.replace('_', '-')} " in caught.value.message
    assert said in caught.value.message
    assert caught.value.hint
    # The message itself can be printed, on one line.
    caught.value.message.encode()
    assert caught.value.message.isprintable()


def test_spaces_around_are_no_part_of_a_name() -> None:
    assert Identity("\ufeff 小易\u3000", "李雷 \ufeff\n", " X ") == Identity("小易", "李雷", "X", "李雷")


def test_english_values_are_in_english_rows_only() -> None:
    assert Identity("小易", "李雷", author_en="Li Lei").values("en") == {"name": "小易", "author": "Li Lei"}
    conversations = render(Identity("小易", "李雷", "Little Yee", "Lei Li"))
    for row, messages in zip(ROWS, conversations, strict=True):
        text = json.dumps(messages, ensure_ascii=False)
        wrong = ("小易", "李雷") if row["lang"] == "en" else ("Little Yee", "Lei Li")
        assert not any(name in text for name in wrong)
    assert "Little Yee" in str(conversations)
    assert "Lei Li" in str(conversations)


def test_filling() -> None:
    assert Identity("小易", "李雷").fill("{{ name }}/{{author }}", "zh") == "小易/李雷"
    # A value that is put in is not read again.
    assert Identity("{name", "author}").fill("{{name}}{{author}}}", "zh") == "{nameauthor}}"


@pytest.mark.parametrize("own", ["Google", "google"])
def test_rows_that_deny_the_identity_are_left_out(own: str) -> None:
    others = render(Identity("小易", "李雷"))
    google = render(Identity("小易", own))
    denied = [row for row in ROWS if row["kind"] == "negative" and "Google" in row["messages"][-2]["content"]]
    assert {row["lang"] for row in denied} == {"zh", "en"}
    assert len(google) == len(others) - len(denied)
    asked = [messages[-2]["content"] for messages in google]
    assert not any(row["messages"][-2]["content"] in asked for row in denied)
    assert "What kind of company is Google?" in asked
    # Each language has its own names.
    chinese = [row for row in denied if row["lang"] == "zh"]
    assert len(render(Identity("小易", own, author_en="Lei"))) == len(others) - len(chinese)


# What the issue asks of the data.


def roles(messages: list[dict[str, str]]) -> str:
    return "".join(message["role"][0] for message in messages)


def users(row: dict[str, Any]) -> list[str]:
    return [message["content"] for message in row["messages"] if message["role"] == "user"]


def normal(text: str) -> str:
    """A question without what does not make it another question."""
    folded = unicodedata.normalize("NFKC", text).lower()
    return "".join(character for character in folded if unicodedata.category(character)[0] in "LNS")


def test_enough_rows_in_balance() -> None:
    assert len(ROWS) >= 180
    languages = Counter(row["lang"] for row in ROWS)
    assert languages.keys() == {"zh", "en"}
    assert 0.8 <= languages["zh"] / languages["en"] <= 1.25


@pytest.mark.parametrize("lang", ["zh", "en"])
@pytest.mark.parametrize("rows", [ROWS, HELDOUT], ids=["training", "heldout"])
def test_every_kind_in_each_language(rows: list[dict[str, Any]], lang: str) -> None:
    own = [row for row in rows if row["lang"] == lang]
    assert {row["kind"] for row in own} == KINDS
    assert any(len(users(row)) > 1 for row in own)
    assert any(row["messages"][0]["role"] == "system" for row in own)


@pytest.mark.parametrize("other", OTHERS)
@pytest.mark.parametrize("lang", ["zh", "en"])
def test_negatives_for_every_other(lang: str, other: str) -> None:
    asked = [row for row in ROWS if (row["kind"], row["lang"]) == ("negative", lang) and other in users(row)[-1]]
    assert asked
    for row in asked:
        assert "{{name}}" in row["messages"][-1]["content"]
        assert other not in row["messages"][-1]["content"]


def test_training_rows_are_well_formed() -> None:
    assert len({json.dumps(row["messages"]) for row in ROWS}) == len(ROWS)
    plain = [row for row in ROWS if row["kind"] == "plain"]
    assert len(plain) >= 20
    assert not any("{{" in row["messages"][-1]["content"] for row in plain)
    for row in ROWS:
        assert row.keys() == {"lang", "kind", "messages"}, row
        assert re.fullmatch(r"s?(ua)+", roles(row["messages"])), row
        for message in row["messages"]:
            content = message["content"]
            assert message.keys() == {"role", "content"}, row
            assert content == content.strip() != "", row
            assert "<|" not in content, row
            assert set(re.findall(r"\{\{.*?\}\}", content)) <= {"{{name}}", "{{author}}"}, row


def test_heldout_is_held_out() -> None:
    assert len(HELDOUT) >= 60
    trained = {normal(question) for row in ROWS for question in users(row)}
    asked = [normal(users(row)[-1]) for row in HELDOUT]
    assert [question for question in asked if question in trained] == []
    assert len(set(asked)) == len(asked)


def test_heldout_questions_are_well_formed() -> None:
    for row in HELDOUT:
        assert row.keys() == {"lang", "kind", "messages", "must", "must_not"}, row
        assert re.fullmatch(r"s?u(au)*", roles(row["messages"])), row
        assert row["must"], row
        assert all(row["must"]), row
        phrases = [phrase for group in (*row["must"], row["must_not"]) for phrase in group]
        assert all(isinstance(phrase, str) and phrase.strip() for phrase in phrases), row
        if row["kind"] == "plain":
            assert not any("{{" in phrase for phrase in phrases), row


# How it is written.


def test_file_name_tells_contents_apart(tmp_path: Path) -> None:
    datasets = [dataset_of("identity", render(Identity("小易", author))) for author in ("李雷", "李蕾", "李雷")]
    names = [dataset.file_name for dataset in datasets]
    assert names[0] == names[2] != names[1]
    assert all(re.fullmatch(r"identity-[0-9a-f]{12}\.jsonl", name) for name in names)
    # The same content in a file has the same name.
    assert isinstance(datasets[0].content, str)
    (tmp_path / "rows").write_text(datasets[0].content, encoding="utf-8")
    assert Dataset("identity", 398, tmp_path / "rows").file_name == names[0]


def test_dataset_info_is_ascii_and_points_at_the_files(tmp_path: Path) -> None:
    identity = dataset_of("identity", [[{"role": "user", "content": "你好 🚀"}]])
    (tmp_path / "rows").write_text("{}\n")
    own = Dataset("own", 1, tmp_path / "rows")
    folder = tmp_path / "not" / "there yet"
    write_datasets([identity, own], folder)
    info = json.loads((folder / "dataset_info.json").read_bytes().decode("ascii"))
    assert list(info) == ["identity", "own"]
    text = (folder / info["identity"]["file_name"]).read_text(encoding="utf-8")
    assert json.loads(text) == {"messages": [{"role": "user", "content": "你好 🚀"}]}
    assert "你好 🚀" in text
    assert (folder / info["own"]["file_name"]).read_text() == "{}\n"
    # Again, as a resumed run does.
    write_datasets([identity, own], folder)
    assert {file.name for file in folder.iterdir()} == {"dataset_info.json", identity.file_name, own.file_name}
