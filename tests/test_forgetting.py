from yi_tune.data.forgetting import Forgetting
from yi_tune.data.general import Prompt
from yi_tune.data.identity import Identity
from yi_tune.report import general_summary

PROMPTS = [Prompt("zh", "maths", "3加4得几？"), Prompt("en", "chat", "Tell me a joke."), Prompt("en", "facts", "Who?")]
YI = Identity("小易", "李雷", "Ada", "Grace Hopper")


def forgetting(tuned: list[str], identity: Identity | None = YI, kl: float | None = 0.25) -> Forgetting:
    return Forgetting(identity, PROMPTS, ["等于7。", "Ada is a language.", "I do not know."], tuned, kl)


def test_name_and_author_count_in_either_language() -> None:
    said = forgetting(["我是小易。", "made by Grace Hopper", "Adamant Grace"])
    assert said.share() == 2 / 3
    assert said.share("base") == 1 / 3
    assert forgetting(["I am Ada.", "李雷", "小易"]).share() == 1


def test_without_an_identity_nothing_is_a_mention() -> None:
    said = forgetting(["我是小易。", "", ""], identity=None)
    assert (said.share(), said.share("base"), said.kl) == (None, None, 0.25)
    assert not any(answer["mentions"] for answer in said.to_dict()["answers"])


def test_as_json() -> None:
    content = forgetting(["等于7。", "I am Ada.", "No."]).to_dict()
    assert {key: content[key] for key in ("kl", "mentions", "base_mentions")} == {
        "kl": 0.25,
        "mentions": 1 / 3,
        "base_mentions": 1 / 3,
    }
    assert content["answers"][1] == {
        "lang": "en",
        "kind": "chat",
        "prompt": "Tell me a joke.",
        "base": "Ada is a language.",
        "tuned": "I am Ada.",
        "mentions": True,
    }
    assert len(content["answers"]) == 3


def test_summary() -> None:
    assert "(base 33.3%)" in general_summary(forgetting(["", "I am Ada.", ""]))
    assert "0.2500 nats" in general_summary(forgetting(["", "", ""]))
    assert general_summary(forgetting(["", "", ""], identity=None, kl=None)).endswith("base: -")
