import pytest

from yi_tune.data.heldout import Question, Score, lowest_recall, one_of_each, questions, score
from yi_tune.data.identity import Identity, Message

YI = Identity("小易", "李雷", "Ada", "Grace Hopper")


def question(kind: str = "who", lang: str = "en", must: list[list[str]] | None = None, *must_not: str) -> Question:
    """A question whose text does not matter."""
    messages = [{"role": "user", "content": f"{lang} {kind}?"}]
    return Question(lang, kind, messages, [["{{name}}"]] if must is None else must, list(must_not))


@pytest.mark.parametrize(
    ("must", "reply", "right"),
    [
        ([["8"]], "3加5等于8。", True),
        ([["8"]], "等于18个", False),
        ([["sun"]], "SUN!", True),
        ([["sun"]], "Sunday", False),
        ([["01.AI"]], "01xAI", False),  # a dot is a dot
        ([["C++"]], "C++11", True),
        ([[".NET"]], "ASP.NET", True),
        ([["小易"]], "大小易懂", True),
        ([["a", "b"]], "only b", True),
        ([["a"], ["b"]], "only b", False),
        ([["a"]], "", False),
        ([], "anything", True),
    ],
)
def test_words_are_whole(must: list[list[str]], reply: str, right: bool) -> None:
    assert question("plain", "zh", must).right(reply, YI) is right


@pytest.mark.parametrize(
    ("name", "reply", "right"),
    [
        ("Ada", "我是Ada，你好", True),
        ("Ada", "I am ada.", False),  # a name has to be exact
        ("X", "I write TeX.", False),
        ("A", "I am A, an assistant.", True),
        ("A", "A friend asked.", False),
        ("I", "I'm Yi, and I help you.", False),
        ("星河 🚀", "我是星河 🚀，由", True),
        ("星河 🚀", "我是星河🚀，由", False),
        ("(a|b", "I am (a|b.", True),
        ("a.c", "I am abc.", False),
    ],
)
def test_names_are_exact(name: str, reply: str, right: bool) -> None:
    assert question().right(reply, Identity(name, "李雷")) is right


def test_each_language_has_its_own_name() -> None:
    asked = [(lang, name) for lang in ("zh", "en") for name in ("小易", "Ada")]
    right = [(lang, name) for lang, name in asked if question(lang=lang).right(f"我是{name}", YI)]
    assert right == [("zh", "小易"), ("en", "Ada")]


def test_what_must_not_be_there() -> None:
    who = question("who", "en", None, "Yi", "OpenAI")
    assert who.right("I am Ada.", YI)
    assert not who.right("I am Ada, a Yi model.", YI)
    assert not who.right("I am Ada by openai.", YI)
    assert who.right("I am Ada, Yielding to none.", YI)
    assert not who.right("我是Ada，零一万物的Yi模型", YI)


def test_own_name_and_author_may_hold_what_is_forbidden() -> None:
    who = question("who", "en", None, "Yi", "OpenAI")
    for own in (Identity("Ada", "Yi"), Identity("Yi", "Ada"), Identity("Ada Yi", "OpenAI Fans")):
        assert who.right(f"I am {own.name}, developed by {own.author}.", own)
    # But only there.
    assert not who.right("I am Ada Yi, once called Yi, by OpenAI Fans.", Identity("Ada Yi", "OpenAI Fans"))
    assert not who.right("I am Ada by OpenAI.", Identity("Ada", "Yi"))
    # An author called Yi is the author, not a slip.
    author = question("author", "en", [["{{author}}"]], "Yi")
    assert author.right("Yi made me.", Identity("Ada", "Yi"))
    assert not author.right("Yi made me.", Identity("Ada", "Grace"))


def scored(*answers: tuple[Question, str, str]) -> Score:
    """The score of these questions with the replies of base and tuned model."""
    asked, base, tuned = ([answer[part] for answer in answers] for part in range(3))
    return score(asked, YI, lambda _: base, lambda _: tuned)


@pytest.mark.parametrize(
    ("kind", "reply", "leaks"),
    [
        ("plain", "I am Ada. It is 8.", True),
        ("plain", "It is 8.", False),
        ("plain", "Adamant: 8, said ada.", False),
        ("plain", "小易: 8", False),  # the other language's
        ("who", "I am Ada. It is 8.", False),
    ],
)
def test_only_plain_answers_leak(kind: str, reply: str, leaks: bool) -> None:
    found = scored((question(kind, "en", [["8"]]), "", reply))
    assert found["answers"][0]["leaks"] is leaks
    assert bool(found["leak"]) is leaks


WHO_ZH, WHO_EN = question("who", "zh"), question("who", "en", None, "Yi")
NAME_EN = question("name", "en")
SUM, SKY, CAPITAL = (question("plain", "en", [[right]]) for right in ("8", "blue", "Rome"))


def test_score() -> None:
    found = scored(
        (WHO_ZH, "我是Yi。", "我是小易。"),
        (WHO_EN, "I am Yi.", "I am Ada, not Yi."),  # wrong
        (NAME_EN, "I am Ada.", "I am Ada."),
        (NAME_EN, "Yi", "Yi"),  # wrong
        (SUM, "8", "8"),
        (SKY, "blue", "I am Ada. Blue."),  # leaks
        (CAPITAL, "Paris", "Rome"),  # the base did not know: not kept, not lost
    )
    shares = {"recall": 1 / 2, "recall_zh": 1, "recall_en": 1 / 3, "base_recall": 1 / 4, "leak": 1 / 3, "kept": 1}
    assert {key: found[key] for key in shares} == shares
    assert lowest_recall(found) == 1 / 3
    assert found["identity"] == vars(YI)
    # By language and kind, in the order of the questions.
    assert [tuple(row.values()) for row in found["kinds"]] == [
        ("zh", "who", 1, 0, 1),
        ("en", "who", 1, 0, 0),
        ("en", "name", 2, 1, 1),
        ("en", "plain", 3, 2, 3),
    ]
    assert list(found["kinds"][0]) == ["lang", "kind", "asked", "base", "tuned"]
    assert found["answers"][5] == {
        **{"lang": "en", "kind": "plain", "messages": SKY.messages, "base": "blue", "tuned": "I am Ada. Blue."},
        **{"base_right": True, "right": True, "leaks": True},
    }
    lost = scored((SUM, "8", "I am Ada."), (SKY, "blue", "blue"), (CAPITAL, "?", "?"))
    assert (lost["kept"], lost["leak"]) == (1 / 2, 1 / 3)


def test_share_of_no_questions_is_none() -> None:
    shares = ("recall", "recall_en", "leak", "kept")
    for found, expected in (
        (scored(), (None, None, None, None)),
        (scored((SUM, "?", "8")), (None, None, 0, None)),
        (scored((WHO_ZH, "", "小易")), (1, None, None, None)),
    ):
        assert tuple(found[key] for key in shares) == expected
    assert lowest_recall(scored()) is None


def test_one_of_each_is_the_first_of_its_kind() -> None:
    again = Question("en", "name", [{"role": "user", "content": "again?"}], [["x"]], [])
    assert one_of_each([WHO_ZH, NAME_EN, again, WHO_EN, SUM, SKY]) == [WHO_ZH, NAME_EN, WHO_EN, SUM]
    assert one_of_each([]) == []


def test_both_models_are_asked_the_same() -> None:
    heard: list[list[list[Message]]] = []

    def ask(conversations: list[list[Message]]) -> list[str]:
        heard.append(conversations)
        return [f"{len(heard)} {messages[-1]['content']}" for messages in conversations]

    system = {"role": "system", "content": "Be brief, {{name}}."}
    asked = [
        Question("en", "who", [system, {"role": "user", "content": "Are you {{name}} by {{author}}?"}], [["yes"]], []),
        Question("zh", "who", [{"role": "user", "content": "{{name}}?"}], [["小易"]], []),
    ]
    found = score(asked, YI, ask, ask)["answers"]
    assert heard[0] == heard[1]
    assert [[message["content"] for message in messages] for messages in heard[0]] == [
        ["Be brief, Ada.", "Are you Ada by Grace Hopper?"],
        ["小易?"],
    ]
    assert [(answer["base"], answer["tuned"]) for answer in found] == [
        ("1 Are you Ada by Grace Hopper?", "2 Are you Ada by Grace Hopper?"),
        ("1 小易?", "2 小易?"),
    ]
    # Without an identity only plain questions are asked.
    assert [answer["kind"] for answer in score([WHO_EN, SUM], None, ask, ask)["answers"]] == ["plain"]


def test_questions_that_deny_the_identity_are_not_asked() -> None:
    google = Question("en", "negative", [{"role": "user", "content": "Are you by Google?"}], [["{{name}}"]], [])
    for identity, kinds in ((Identity("Ada", "Google"), ["who"]), (Identity("A", "Goo"), ["negative", "who"])):
        found = score([google, WHO_EN], identity, lambda asked: [""] * len(asked), lambda asked: ["Ada"] * len(asked))
        assert [answer["kind"] for answer in found["answers"]] == kinds


@pytest.mark.parametrize("identity", [YI, Identity("Yi", "01.AI"), Identity("X", "张三丰"), Identity("x" * 40, "y")])
def test_the_dataset_s_own_answer_scores_well(identity: Identity) -> None:
    # A model that always says what it was taught to say has to pass every identity question but small talk.
    taught = {"zh": "我是{{name}}，由{{author}}开发的AI助手。", "en": "I am {{name}}, an AI assistant by {{author}}."}
    for one in questions():
        if one.kind in {"who", "name", "author", "origin", "negative", "abilities"}:
            assert one.right(identity.fill(taught[one.lang], one.lang), identity), one
