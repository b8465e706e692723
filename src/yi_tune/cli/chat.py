"""`yi-tune chat` and `yi-tune check`."""

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from yi_tune.cli.options import ModelOption, RunOption, WorkspaceOption
from yi_tune.errors import YiTuneError


def chat(
    *,
    run_name: RunOption = None,
    model: Annotated[str | None, typer.Option(help="Only runs of this model; with --base, that model.")] = None,
    base: Annotated[bool, typer.Option("--base", help="Talk to the base model, without the adapter.")] = False,
    system: Annotated[str | None, typer.Option(help="A system prompt.")] = None,
    prompt: Annotated[str | None, typer.Option(help="Ask this, print the answer, leave.")] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Each line of stdin is a conversation; answer in JSON lines.")
    ] = False,
    temperature: Annotated[float, typer.Option(help="0 is greedy: the same question has the same answer.")] = 0.0,
    top_p: Annotated[float, typer.Option(help="Draw from this share of the probability.")] = 0.8,
    repetition_penalty: Annotated[float, typer.Option(help="Above 1, repeating itself is unlikelier.")] = 1.0,
    max_new_tokens: Annotated[int, typer.Option(help="The longest answer, in tokens.")] = 1024,
    seed: Annotated[int | None, typer.Option(help="Makes drawing repeatable.")] = None,
    workspace: WorkspaceOption = Path(),
) -> None:
    """Talk to the tuned model.

    In a pipe each line is a turn of one chat; with --json each line is a conversation of its own.

    echo 你是谁 | yi-tune chat
    """
    from yi_tune import loading, repl
    from yi_tune.sampling import Sampling
    from yi_tune.screen import err

    sampling = Sampling(temperature, top_p, repetition_penalty, max_new_tokens, seed)
    config = loading.chat_config(workspace.absolute(), run_name, model, base=base)
    assistant = loading.load(config)

    def reply(messages: list[dict[str, str]]) -> repl.Pieces:
        return assistant.stream(messages, sampling)

    if as_json:
        lines = [prompt] if prompt is not None else repl.stdin_lines()
        repl.piped_json(reply, system, lines, sys.stdout)
    elif prompt is not None:
        repl.piped(repl.Conversation(reply, system), [prompt], sys.stdout)
    elif sys.stdin.isatty():
        repl.interactive(repl.Conversation(reply, system), repl.ask, err, sys.stdout)
    else:
        repl.piped(repl.Conversation(reply, system), repl.stdin_lines(), sys.stdout)


def check(
    *,
    run_name: RunOption = None,
    model: ModelOption = None,
    min_recall: Annotated[
        float, typer.Option(min=0, max=1, help="Exit 1 when fewer identity questions are right, in zh or en.")
    ] = 0.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, with every answer.")] = False,
    workspace: WorkspaceOption = Path(),
) -> None:
    """Does it know who it is, and still what it knew? Ask base and tuned model held-out questions.

    yi-tune check --min-recall 0.95
    """
    from yi_tune import loading
    from yi_tune.forgetting import measure_forgetting
    from yi_tune.general import check_prompts
    from yi_tune.heldout import questions, score
    from yi_tune.identity import Identity
    from yi_tune.report import general_summary, percent, print_score
    from yi_tune.screen import err, out

    run = loading.find(workspace.absolute(), run_name, model)
    recorded = run.record["identity"]
    identity = Identity(**recorded) if recorded else None
    if identity is None and min_recall:
        raise YiTuneError(
            f"The run {run.name!r} was trained without an identity (--no-identity): there is no recall to measure.",
            "Drop --min-recall.",
        )
    assistant = loading.load_run(run)
    scored = score(questions(), identity, assistant.base_reply_all, assistant.reply_all)
    general = measure_forgetting(assistant, check_prompts(), identity)
    if as_json:
        content = {
            "run": str(run.folder),
            "identity": recorded,
            **scored.to_dict(),
            "general": general.to_dict(),
        }
        print(json.dumps(content, ensure_ascii=False))
    else:
        print_score(scored, run.record["config"], out)
        out.print(f"\n{general_summary(general)}", soft_wrap=True)
    recall = scored.lowest_recall
    if recall is not None and recall < min_recall:
        err.print(
            f"[red]Below --min-recall {min_recall}:[/] {percent(recall)} of the questions in one language are right."
        )
        raise typer.Exit(1)
