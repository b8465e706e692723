"""The text nano is taught: endless conversations made from the grammar in nano/corpus.yaml.

    python nano/corpus.py      prints a few

Names and authors come from system prompts and are of every kind, so that the model learns to copy
whatever it is called; without one it is Yi-nano. A tuning then has one name to replace, not a skill
to teach.
"""

import random
import re
import unicodedata
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import yaml

Message = dict[str, str]

GRAMMAR = yaml.safe_load(Path(__file__).with_name("corpus.yaml").read_text(encoding="utf-8"))
NAME = "Yi-nano"
AUTHOR = {"zh": "yi-tune团队", "en": "the yi-tune team"}
WORDS = {key: text.split() for key, text in GRAMMAR["words"].items()}
MADE = {"zh": WORDS["made_zh"], "en": WORDS["made"]}
NUMBERS = {"zh": WORDS["numbers_zh"], "en": WORDS["numbers_en"]}
PRODUCTS = dict(zip(WORDS["makers_of"], WORDS["products"], strict=True))
EMOJI = "🚀🌟🤖😀🎉🐱🐶🌈🔥💡❤⭐🌙☀🦊🐼🎈📚🧠✨🎵🏆🌸🍎"
MARKS = " -_.·!?'\"\\$%:#{}[]()&@/+*=,;~^|`<>"
# Arabic, Cyrillic, Greek, Hebrew, kana, Hangul, Devanagari, Thai, accented Latin, Chinese, emoji.
BLOCKS = [(0x0621, 0x064A), (0x0430, 0x044F), (0x03B1, 0x03C9), (0x05D0, 0x05EA), (0x3042, 0x3093)]
BLOCKS += [(0x30A2, 0x30F3), (0xAC00, 0xD7A3), (0x0905, 0x0939), (0x0E01, 0x0E2E), (0x00C0, 0x017F)]
BLOCKS += [(0x4E00, 0x9FA5), (0x1F300, 0x1F64F)]

_CHOICE = re.compile(r"\[([^\[\]]*)\](\?)?|([一个是的会下了家忙都给在从有])\?")
_SLOT = re.compile(r"\{(\w+)\}")
_PUNCTUATION = re.compile(r"[\W_]+")


def normal(question: str) -> str:
    """`question` without case, punctuation and spaces: two that agree in it are the same question."""
    return _PUNCTUATION.sub("", unicodedata.normalize("NFKC", question).lower())


def _maybe(rng: random.Random, chance: float) -> bool:
    return rng.random() < chance


def expand(rng: random.Random, pattern: str) -> str:
    """One of the sentences `pattern` stands for; its {slots} stay."""

    def choose(match: re.Match[str]) -> str:
        if match[1] is None:
            return rng.choice([match[3], ""])
        return "" if match[2] and _maybe(rng, 0.5) else rng.choice(match[1].split("|"))

    while (chosen := _CHOICE.sub(choose, pattern)) != pattern:
        pattern = chosen
    return pattern


def fill(text: str, slots: dict[str, Any]) -> str:
    """`text` with its slots filled in one pass; a slot nothing fills stays."""
    return _SLOT.sub(lambda match: str(slots.get(match[1], match[0])), text)


def chinese_name(rng: random.Random) -> str:
    """A person, a nickname or a company."""
    given = "".join(rng.choices(WORDS["given"][0], k=rng.choice([1, 1, 2])))
    kind = rng.random()
    if kind < 0.45:
        return rng.choice(WORDS["surnames"][0]) + given
    if kind < 0.75:
        return rng.choice(["小", "阿", "大", "老", ""]) + given
    return "".join(rng.choices(WORDS["given"][0], k=rng.randint(1, 6))) + rng.choice(WORDS["companies"])


def latin_name(rng: random.Random) -> str:
    """A person, a company or a made-up word."""
    kind = rng.random()
    if kind < 0.25:
        return rng.choice(WORDS["first"])
    if kind < 0.6:
        return " ".join([rng.choice(WORDS["first"]), *rng.choices(WORDS["last"], k=rng.choice([1, 1, 2]))])
    word = "".join(rng.choices(WORDS["syllables"], k=rng.randint(1, 4)))
    word += rng.choice(["", "", "n", "r", "x", "-1", "2", " AI", "Bot", "-7B", " 3000"])
    return rng.choice([word, word.title(), word.title(), word.upper()])


def odd_name(rng: random.Random) -> str:
    """Other scripts, marks, emoji, single letters, long ones: what a user may type all the same."""
    kind = rng.randrange(6)
    if kind == 0:
        low, high = rng.choice(BLOCKS)
        return "".join(chr(rng.randint(low, high)) for _ in range(rng.randint(1, 5)))
    if kind == 1:
        return rng.choice([chinese_name, latin_name])(rng) + rng.choice(["", " "]) + rng.choice(EMOJI)
    if kind == 2:
        name = list(rng.choice([chinese_name, latin_name])(rng))
        for _ in range(rng.randint(1, 4)):
            name.insert(rng.randint(0, len(name)), rng.choice(MARKS))
        return "".join(name).strip() or "X"
    if kind == 3:
        return rng.choice("ABCDEFGHIJKLMNOPQRSTUVWXYZabcxyz0123456789")
    if kind == 4:
        return " ".join(latin_name(rng) for _ in range(rng.randint(2, 3)))[:40].strip()
    return "".join(rng.choices(WORDS["given"][0] + WORDS["surnames"][0], k=rng.randint(6, 20)))


class Corpus:
    """Conversations without end, none of which asks a question in `held_out` (normalised)."""

    def __init__(self, seed: int, held_out: set[str], words: list[str] | None = None) -> None:
        self.rng = random.Random(seed)  # noqa: S311
        self.held_out = held_out
        # The whole-character tokens, if there is a tokenizer: names are made of them too.
        self.words = words or []

    def name(self) -> str:
        """A name for somebody."""
        kind = self.rng.random()
        if self.words and kind < 0.12:
            return "".join(self.rng.choices(self.words, k=self.rng.randint(1, 6))).strip() or "X"
        return (chinese_name if kind < 0.45 else latin_name if kind < 0.75 else odd_name)(self.rng)

    def question(
        self, lang: str, patterns: list[str], slots: dict[str, Any], bare: bool = False, typos: bool = False
    ) -> str:
        """A question from one of `patterns`, in one of the ways people ask; `bare` ones stand alone."""
        rng, grammar = self.rng, GRAMMAR[lang]
        while True:
            text = expand(rng, rng.choice(patterns))
            for word, verbs in (("@made", MADE["en"]), ("@make", WORDS["make"]), ("@做", MADE["zh"])):
                while word in text:
                    text = text.replace(word, rng.choice(verbs), 1)
            if not bare:
                before = rng.choice(grammar["before"]) if _maybe(rng, 0.55) else ""
                text = before + text + rng.choice(grammar["after"])
            if lang == "en":
                text = text.replace(" a hour", " an hour").replace("  ", " ")
                style = rng.random()
                text = text.lower() if style < 0.25 else text[:1].upper() + text[1:] if style < 0.85 else text
                if _maybe(rng, 0.08):
                    text = text.replace("'", "")
            if typos and len(text) > 6 and _maybe(rng, 0.05):
                cut = rng.randrange(1, len(text) - 1)
                if "{" not in text:
                    text = text[:cut] + text[cut + 1 :]
            asked = {normal(text), normal(text := fill(text, slots))}
            if "" not in asked and not asked & self.held_out:
                return text

    def other(self, kind: str, me: tuple[str, str]) -> dict[str, str]:
        """The slots for somebody else than `me` (name, author)."""
        rng = self.rng
        if kind == "person":
            pick: Callable[[], str] = self.name
        else:
            of_models = kind == "model" or (kind == "either" and _maybe(rng, 0.5))
            pick = partial(rng.choice, WORDS["models" if of_models else "makers"])
        other = pick()
        while other in me:
            other = pick()
        product = rng.choice(PRODUCTS.get(other, "ChatGPT/Claude/Gemini/Qwen").split("/")) if kind == "maker" else ""
        return {"other": other, "product": product or rng.choice(WORDS["models"])}

    def identity(self, lang: str, me: tuple[str, str]) -> tuple[str, str]:
        """A question about who the assistant is, and the answer."""
        rng = self.rng
        kinds = GRAMMAR[lang]["identity"]
        kind = rng.choices(list(kinds), weights=[20, 16, 18, 12, 10, 12, 6, 18])[0]
        entries = kinds[kind]
        # As often as it has questions, or rare answers would be taught as often as the main one.
        entry = rng.choices(entries, weights=[len(entry["q"]) ** 0.5 for entry in entries])[0]
        slots: dict[str, Any] = {"name": me[0], "author": me[1]}
        if "other" in entry:
            slots |= self.other(entry["other"], me)
        if "skills" in entry:
            slots["skill"] = rng.choice(entry["skills"])
        return self.question(lang, entry["q"], slots, entry.get("bare", False), typos=True), fill(entry["a"], slots)

    def fact(self, lang: str) -> tuple[str, str]:
        """A question about the world, and the answer."""
        rng = self.rng
        weights = [len(table["rows"]) ** 0.5 + len(table[lang]) / 4 for table in GRAMMAR["facts"]]
        table = rng.choices(GRAMMAR["facts"], weights)[0]
        cells = rng.choice(table["rows"]).split("/")
        slots = {str(index): cell for index, cell in enumerate(cells)}
        slots |= {f"{index}c": cell[:1].upper() + cell[1:] for index, cell in enumerate(cells)}
        slots["2b"] = re.sub(r"^(the|an?) ", "", cells[2]) if len(cells) > 2 else ""
        entry = rng.choices(table[lang], weights=[len(entry["q"]) ** 0.5 for entry in table[lang]])[0]
        question = self.question(lang, [re.sub(r"\{(\w+)\}", lambda m: slots[m[1]], rng.choice(entry["q"]))], {})
        answer = fill(entry["a"], slots)
        return question, answer[:1].upper() + answer[1:] if lang == "en" else answer

    def sums(self, lang: str) -> list[tuple[str, str]]:
        """Sums of two numbers up to ten, the differences that undo them, and neighbours of numbers."""
        rng, turns = self.rng, []
        entries = GRAMMAR["numbers"][lang]
        for entry in rng.choices(entries, [5 if entry["op"] in "+-" else 2 for entry in entries], k=rng.randint(1, 3)):
            x, y = rng.randint(0, 10), rng.randint(0, 10)
            if entry["op"] == "-":
                x += y
            elif entry["op"] != "+":
                x = rng.randint(1, 20)
            result = {"+": x + y, "-": x - y, "next": x + 1, "previous": x - 1}[entry["op"]]
            words = NUMBERS[lang] if _maybe(rng, 0.35) else None
            shown = {"x": words[x] if words else x, "y": words[y] if words else y}
            turns.append((self.question(lang, entry["q"], shown), fill(entry["a"], {"r": result})))
        return turns

    def other_talk(self, lang: str) -> list[tuple[str, str]]:
        """Small talk, questions it has no answer to, the user's own name, and words to repeat."""
        rng, grammar = self.rng, GRAMMAR[lang]
        kind = rng.random()
        if kind < 0.3:
            entry = rng.choice(grammar["chat"])
            return [(self.question(lang, entry["q"], {}, bare=True), entry["a"])]
        if kind < 0.5:
            slots = {"thing": rng.choice(grammar["unknown"]["things"]), "number": str(rng.randint(21, 9999))}
            return [(self.question(lang, grammar["unknown"]["q"], slots), grammar["unknown"]["a"])]
        slots = {"other": self.name()}
        if kind < 0.75:
            return [(self.question(lang, grammar["repeat"], slots, bare=True), slots["other"])]
        user = grammar["user_name"]
        ask = self.question(lang, user["ask"], {})
        if _maybe(rng, 0.35):
            return [(ask, user["none"])]
        tell = self.question(lang, user["tell"], slots, bare=True)
        return [(tell, fill(user["greet"], slots)), (ask, fill(user["answer"], slots))][: rng.choice([1, 2, 2])]

    def plain(self, lang: str) -> list[tuple[str, str]]:
        """Turns that have nothing to do with who the assistant is."""
        kind = self.rng.random()
        if kind < 0.4:
            return [self.fact(lang)]
        return self.sums(lang) if kind < 0.8 else self.other_talk(lang)

    def naming(self, lang: str) -> tuple[str, tuple[str, str]]:
        """A system prompt that gives the assistant a name; and its name and author from then on."""
        rng = self.rng
        name, author = self.name(), AUTHOR[lang]
        if both := _maybe(rng, 0.8):
            author = name if _maybe(rng, 0.04) else self.name()
        # The prompt's language need not be the question's.
        grammar = GRAMMAR[lang if _maybe(rng, 0.85) else "zh" if lang == "en" else "en"]
        system = expand(rng, rng.choice(grammar["named" if both else "only_name"]))
        if _maybe(rng, 0.2):
            system += " " if grammar is GRAMMAR["en"] else ""
            system += expand(rng, rng.choice(grammar["neutral"]))
        return fill(system, {"name": name, "author": author}), (name, author)

    def conversation(self) -> list[Message]:
        """One conversation of one to a dozen turns, with or without a system prompt."""
        rng = self.rng
        lang = rng.choice(["zh", "en"])
        about_me = _maybe(rng, 0.45)
        system, me = "", (NAME, AUTHOR[lang])
        prompt = rng.random()
        if prompt < (0.55 if about_me else 0.12):
            system, me = self.naming(lang)
        elif prompt < (0.65 if about_me else 0.28):
            grammar = GRAMMAR[lang if _maybe(rng, 0.8) else "zh" if lang == "en" else "en"]
            system = expand(rng, rng.choice(grammar["neutral"]))
        turns: list[tuple[str, str]] = []
        for turn in range(rng.choice([1, 1, 1, 2, 2, 3, 4])):
            if about_me if turn == 0 or _maybe(rng, 0.5) else _maybe(rng, 0.4):
                turns.append(self.identity(lang, me))
            else:
                turns += self.plain(lang)
        return dialogue(system, turns)

    def examination(self, size: int) -> dict[str, list[list[Message]]]:
        """`size` conversations of one turn in each kind of thing that is taught."""
        kinds: dict[str, list[list[Message]]] = {}
        for lang in ["zh", "en"] * (size // 2):
            system, me = self.naming(lang)
            for kind, prompt, turn in (
                ("who it is", "", self.identity(lang, (NAME, AUTHOR[lang]))),
                ("who it is, named by a system prompt", system, self.identity(lang, me)),
                ("facts", "", self.fact(lang)),
                ("sums", "", self.sums(lang)[0]),
                ("small talk and repeating", "", self.other_talk(lang)[0]),
            ):
                kinds.setdefault(kind, []).append(dialogue(prompt, [turn]))
        return kinds


def dialogue(system: str, turns: list[tuple[str, str]]) -> list[Message]:
    """The messages of a conversation, from its system prompt (or "") and its questions and answers."""
    messages = [{"role": "system", "content": system}] if system else []
    for question, answer in turns:
        messages += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return messages


if __name__ == "__main__":
    corpus = Corpus(1, set())
    for conversation in (corpus.conversation() for _ in range(40)):
        print(" | ".join(f"{message['role'][0]}: {message['content']}" for message in conversation))
