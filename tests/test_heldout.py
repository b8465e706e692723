import pytest

from yi_tune.data.heldout import Answer, Question, Score, one_of_each, questions, score
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
    scored = Score(YI, [Answer(question(kind, "en", [["8"]]), "", reply)])
    assert scored.to_dict()["answers"][0]["leaks"] is leaks
    assert bool(scored.leak) is leaks


WHO_ZH, WHO_EN = question("who", "zh"), question("who", "en", None, "Yi")
NAME_EN = question("name", "en")
SUM, SKY, CAPITAL = (question("plain", "en", [[right]]) for right in ("8", "blue", "Rome"))
SCORE = Score(
    YI,
    [
        Answer(WHO_ZH, "我是Yi。", "我是小易。"),
        Answer(WHO_EN, "I am Yi.", "I am Ada, not Yi."),  # wrong
        Answer(NAME_EN, "I am Ada.", "I am Ada."),
        Answer(NAME_EN, "Yi", "Yi"),  # wrong
        Answer(SUM, "8", "8"),
        Answer(SKY, "blue", "I am Ada. Blue."),  # leaks
        Answer(CAPITAL, "Paris", "Rome"),  # the base did not know: not kept, not lost
    ],
)


def test_recall() -> None:
    assert [SCORE.recall(), SCORE.recall("zh"), SCORE.recall("en"), SCORE.lowest_recall] == [2 / 4, 1, 1 / 3, 1 / 3]
    assert [SCORE.recall(which="base"), SCORE.recall("zh", "base")] == [1 / 4, 0]


def test_leak_and_kept() -> None:
    assert SCORE.leak == 1 / 3
    assert SCORE.kept == 1
    lost = Score(YI, [Answer(SUM, "8", "I am Ada."), Answer(SKY, "blue", "blue"), Answer(CAPITAL, "?", "?")])
    assert lost.kept == 1 / 2
    assert lost.leak == 1 / 3


def test_right_answers_by_language_and_kind_in_order() -> None:
    assert [tuple(row.values()) for row in SCORE.kinds] == [
        ("zh", "who", 1, 0, 1),
        ("en", "who", 1, 0, 0),
        ("en", "name", 2, 1, 1),
        ("en", "plain", 3, 2, 3),
    ]


def test_misses_are_the_wrong_and_the_leaking() -> None:
    assert [answer.tuned for answer in SCORE.misses] == ["I am Ada, not Yi.", "Yi", "I am Ada. Blue."]


def test_score_of_nothing() -> None:
    empty = Score(YI, [])
    assert (empty.recall(), empty.lowest_recall, empty.leak, empty.kept) == (None, None, None, None)
    assert (empty.kinds, empty.misses) == ([], [])
    plain, identity = Score(YI, [Answer(SUM, "?", "8")]), Score(YI, [Answer(WHO_ZH, "", "小易")])
    assert (plain.recall(), plain.leak, plain.kept) == (None, 0, None)
    assert (identity.recall(), identity.recall("en"), identity.leak) == (1, None, None)


def test_score_as_json() -> None:
    content = SCORE.to_dict()
    shares = {"recall": 1 / 2, "recall_zh": 1, "recall_en": 1 / 3, "base_recall": 1 / 4, "leak": 1 / 3, "kept": 1}
    assert {key: content[key] for key in shares} == shares
    assert content["kinds"][2] == {"lang": "en", "kind": "name", "asked": 2, "base": 1, "tuned": 1}
    assert content["answers"][5] == {
        "lang": "en",
        "kind": "plain",
        "messages": SKY.messages,
        "base": "blue",
        "tuned": "I am Ada. Blue.",
        "right": True,
        "leaks": True,
    }
    assert len(content["answers"]) == 7


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
    scored = score(asked, YI, ask, ask)
    assert heard[0] == heard[1]
    assert [[message["content"] for message in messages] for messages in heard[0]] == [
        ["Be brief, Ada.", "Are you Ada by Grace Hopper?"],
        ["小易?"],
    ]
    assert scored.answers == [
        Answer(asked[0], "1 Are you Ada by Grace Hopper?", "2 Are you Ada by Grace Hopper?"),
        Answer(asked[1], "1 小易?", "2 小易?"),
    ]


def test_questions_that_deny_the_identity_are_not_asked() -> None:
    google = Question("en", "negative", [{"role": "user", "content": "Are you by Google?"}], [["{{name}}"]], [])
    scored = score([google, WHO_EN], Identity("Ada", "Google"), lambda asked: [""] * len(asked), lambda asked: ["Ada"])
    assert [answer.question for answer in scored.answers] == [WHO_EN]
    # A name within another word denies nothing.
    scored = score([google], Identity("A", "Goo"), lambda asked: [""] * len(asked), lambda asked: ["A"])
    assert [answer.question for answer in scored.answers] == [google]


@pytest.mark.parametrize("identity", [YI, Identity("Yi", "01.AI"), Identity("X", "张三丰"), Identity("x" * 40, "y")])
def test_the_dataset_s_own_answer_scores_well(identity: Identity) -> None:
    # A model that always says what it was taught to say has to pass every identity question but small talk.
    taught = {"zh": "我是{{name}}，由{{author}}开发的AI助手。", "en": "I am {{name}}, an AI assistant by {{author}}."}
    for one in questions():
        if one.kind in {"who", "name", "author", "origin", "negative", "abilities"}:
            assert one.right(identity.fill(taught[one.lang], one.lang), identity), one
