"""The loss curve in characters: what training_loss.png shows, for who has only a terminal."""

from bisect import bisect_right

from rich.console import Console

from yi_tune.runs.history import History, smooth

# A cell of braille is two dots wide and four high; the bit of each.
_DOTS = ((0x01, 0x02, 0x04, 0x40), (0x08, 0x10, 0x20, 0x80))
_WIDTH, _HEIGHT = 76, 12


def print_end(history: History, console: Console) -> None:
    """Say how training ended, if it was before its last step; and draw the losses on a terminal that can show it."""
    if history.step < history.steps and history.best in history.eval_losses:
        console.print(
            f"stopped early, after step {history.step} of {history.steps}: kept is step {history.best}, "
            f"eval_loss {history.eval_losses[history.best]:.4f}",
        )
    shown = console.is_terminal and not console.is_dumb_terminal and console.encoding.lower().startswith("utf")
    if shown and len(history.losses) > 1:
        console.print(f"\n{draw_chart(history, min(console.width - 1, _WIDTH), _HEIGHT)}", soft_wrap=True)


def draw_chart(history: History, width: int, height: int) -> str:
    """The chart, `width` by `height` characters with its axes: the smoothed training loss (at least two) as a line of
    dots, each eval loss as an x. Both axes are linear.
    """
    steps, losses = list(history.losses), smooth(list(history.losses.values()))
    top, bottom = (pick((*losses, *history.eval_losses.values())) for pick in (max, min))
    labels = [f"{value:.3f}" for value in (top, (top + bottom) / 2, bottom)]
    margin = max(map(len, labels))
    columns, rows = max(width - margin - 2, 1), height - 2
    cells = [[0] * columns for _ in range(rows)]

    def across(step: int) -> int:
        return round((step - steps[0]) / (steps[-1] - steps[0]) * (columns - 1))

    def down(loss: float, size: int) -> int:
        return round((top - loss) / (top - bottom) * (size - 1)) if top > bottom else 0

    last = down(losses[0], rows * 4)
    for x in range(columns * 2):
        step = steps[0] + x / (columns * 2 - 1) * (steps[-1] - steps[0])
        after = min(bisect_right(steps, step), len(steps) - 1)
        part = min((step - steps[after - 1]) / (steps[after] - steps[after - 1]), 1)
        y = down(losses[after - 1] + part * (losses[after] - losses[after - 1]), rows * 4)
        for dot in range(min(last, y), max(last, y) + 1):
            cells[dot // 4][x // 2] |= _DOTS[x % 2][dot % 4]
        last = y
    lines = [[chr(0x2800 + cell) if cell else " " for cell in row] for row in cells]
    for step, loss in history.eval_losses.items():
        if steps[0] <= step <= steps[-1]:
            lines[down(loss, rows)][across(step)] = "x"
    labelled = {0: labels[0], rows // 2: labels[1], rows - 1: labels[2]}
    drawn = [f"{labelled.get(row, ''):>{margin}} ┤{''.join(line).rstrip()}" for row, line in enumerate(lines)]
    drawn.append(f"{'':{margin}} └{'─' * columns}")
    first, final = f"step {steps[0]}", str(steps[-1])
    drawn.append(f"{'':{margin}}  {first}{final:>{max(columns - len(first), 0)}}")
    return "\n".join(drawn)
