"""`yi-tune chat` and `yi-tune check`."""

import json
import sys
from gettext import gettext as _
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from yi_tune.cli import complete
from yi_tune.cli.runs import DeviceOption, GpusOption, ModelOption, RunOption, WorkspaceOption, count_gpus
from yi_tune.errors import YiTuneError


def chat(
    context: typer.Context,
    *,
    run_name: RunOption = None,
    model: Annotated[
        str | None,
        typer.Option(help="Only runs of this model; with --base, that model.", autocompletion=complete.models),
    ] = None,
    base: Annotated[bool, typer.Option("--base", help="Talk to the base model, without the adapter.")] = False,
    compare: Annotated[bool, typer.Option("--compare", help="Base and tuned model side by side.")] = False,
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
    engine: Annotated[
        Literal["yi-tune", "llamafactory"],
        typer.Option(
            help="llamafactory: LLaMA-Factory's own chat. yi-tune's adds commands, an editor, base beside tuned, JSON, "
            "and Ctrl-C stops an answer."
        ),
    ] = "yi-tune",
    workspace: WorkspaceOption = Path(),
) -> None:
    """Talk to the tuned model.

    In a pipe each line is a turn of one chat; with --json each line is a conversation of its own.

    Examples:

    \b
        yi-tune chat
        yi-tune chat --run identity --prompt 你是谁
        echo 你是谁 | yi-tune chat --model nano --base
    """
    if base and compare:
        raise typer.BadParameter(_("--compare has the base already: leave --base out."))
    if prompt is not None and not prompt.strip():
        raise typer.BadParameter(_("it is empty."), param_hint="--prompt")
    from yi_tune import loading

    if engine == "llamafactory":
        given = {
            name for name in context.params if getattr(context.get_parameter_source(name), "name", "") == "COMMANDLINE"
        }
        if given - {"engine", "run_name", "model", "workspace"}:
            message = _("LLaMA-Factory's chat takes no options but --run, --model and --workspace.")
            raise typer.BadParameter(message, param_hint="--engine")
        run = loading.find(workspace.absolute(), run_name, model)
        config = loading.run_config(run)
        from yi_tune.engine.assistant import llamafactory_chat

        return llamafactory_chat(run.chat_yaml, config)
    from yi_tune.chat.piped import piped, piped_json
    from yi_tune.chat.rendering import Screen
    from yi_tune.chat.session import Session
    from yi_tune.output import err, out
    from yi_tune.sampling import Sampling

    sampling = Sampling(temperature, top_p, repetition_penalty, max_new_tokens, seed)
    a_person = prompt is None and not as_json and sys.stdin.isatty()
    assistant = loading.load(loading.chat_config(workspace.absolute(), run_name, model, base=base, both=a_person))
    session = Session(assistant, Screen(out, err), sampling, system, base=base, both=compare)
    if a_person:
        from yi_tune.chat.editor import converse

        return converse(session)
    if prompt is None:
        # "-sig": a byte order mark at its beginning is no part of it. What is not UTF-8 is told line by line.
        sys.stdin.reconfigure(encoding="utf-8-sig", errors="surrogateescape")  # type: ignore[union-attr]
    lines = sys.stdin if prompt is None else [prompt]
    if as_json:
        piped_json(session, lines, sys.stdout)
    else:
        piped(session, lines)


def check(
    *,
    run_name: RunOption = None,
    model: ModelOption = None,
    min_recall: Annotated[
        float, typer.Option(min=0, max=1, help="Exit 1 when fewer identity questions are right, in zh or en.")
    ] = 0.0,
    exported: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Ask an exported model instead, as other programs would.")
    ] = None,
    device: DeviceOption = "auto",
    gpus: GpusOption = "1",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, with every answer.")] = False,
    workspace: WorkspaceOption = Path(),
) -> None:
    """Does it know who it is, and still what it knew? Ask base and tuned model held-out questions.

    Examples:

    \b
        yi-tune check
        yi-tune check --run identity --min-recall 0.95
        yi-tune check --exported exports/nano/identity --json
    """
    from yi_tune import loading
    from yi_tune.data.heldout import lowest_recall
    from yi_tune.data.identity import Identity
    from yi_tune.export import check_exported
    from yi_tune.hardware import detect
    from yi_tune.output import err, out, percent
    from yi_tune.report import general_summary, print_advice, print_score
    from yi_tune.sharing import keep_check

    content: dict[str, Any]
    count = count_gpus(gpus, device)
    if exported is not None:
        if run_name or model or (device, count) != ("auto", 1):
            said = _(
                "leave --run, --model, --device and --gpus out: it says itself who it is, and answers on one device."
            )
            raise typer.BadParameter(said, param_hint="--exported")
        scored = check_exported(exported.absolute())
        of_both = ("base_recall", "kept", "kinds")
        content = {"exported": str(exported.absolute())} | {key: scored[key] for key in scored if key not in of_both}
    else:
        run = loading.find(workspace.absolute(), run_name, model)
        record = run.record
        recorded = record["identity"]
        if min_recall and not recorded:
            raise YiTuneError(
                "The run {run!r} was trained without an identity (--no-identity): there is no recall to measure.",
                "Drop --min-recall.",
                run=run.name,
            )
        identity = Identity(**recorded) if recorded else None
        scored, general = loading.check(run, identity, detect(cpu_only=device == "cpu", gpus=count))
        page = keep_check(run, record, {**scored, "general": general})
        content = {"run": str(run.folder), **scored, "general": general, "page": page and str(page)}
    if as_json:
        print(json.dumps(content, ensure_ascii=False))
    elif exported is not None:
        print_score(scored, out)
    else:
        print_advice(scored, record["config"], out)
        print_score(scored, out)
        out.print(f"\n{general_summary(general)}")
        if page:
            out.print("\n" + _("report:         {page}").format(page=page))
    recall = lowest_recall(scored)
    if recall is not None and recall < min_recall:
        said = _("[red]Below --min-recall {least}:[/] {recall} of the questions in one language are right.")
        err.print(said.format(least=min_recall, recall=percent(recall)), markup=True)
        raise typer.Exit(1)
