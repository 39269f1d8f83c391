"""What was found, as HTML: two models side by side, in colours that follow light and dark."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from markupsafe import Markup, escape

from ..palette import DARK, LIGHT
from ..terminal import page_text

if TYPE_CHECKING:
    from ..one_image import Look, Trial

BARS = 5  # classes of which the probabilities are shown

EMPTY = Markup(
    '<p class="hf-empty">Pick an image: an example, a file, a photograph or a drawing. Both models '
    "answer, an attack changes it, and what it changed is shown here.</p>"
)


def text(value: object) -> Markup:
    """Anybody's words, harmless on a page."""
    return escape(page_text(str(value)))


def fault(said: str) -> Markup:
    """What went wrong, in a line."""
    return Markup('<p class="hf-fault" role="alert">{}</p>').format(text(said))


def waiting(said: str) -> Markup:
    """What is being done."""
    return Markup('<p class="hf-empty" role="status">{}</p>').format(text(said))


def panel(trials: Sequence[Trial], card: str) -> Markup:
    """The models side by side.

    Args:
        card: the name of the card that can be downloaded.
    """
    parts = [Markup('<div class="hf-pair">')]
    parts += [_model(trial) for trial in trials]
    parts.append(Markup("</div>"))
    first = trials[0]
    notes = [f"{first.source}: {first.fitting}." if first.fitting else f"{first.source}."]
    if not first.label_given:
        notes.append("No true class was given: each model's own clean answer counts as right.")
    notes += dict.fromkeys(
        f"{trial.name}: {trial.calibration.promise}"
        if trial.calibration.conformal is None
        else trial.calibration.promise
        for trial in trials
    )
    parts.append(Markup('<div class="hf-notes">'))
    parts += [Markup("<p>{}</p>").format(text(note)) for note in notes]
    parts.append(
        Markup(
            '<p><a class="hf-card" href="/card/{}.png" download="holdfast-card.png">'
            "Download the card (PNG)</a></p></div>"
        ).format(card)
    )
    return Markup("").join(parts)


def _model(trial: Trial) -> Markup:
    defence = " → ".join(trial.defences) or "no defence in front"
    trained = "broken" if trial.broken else "stands"
    return Markup(
        '<section class="hf-model" aria-label="{name}">'
        '<header><div><h3>{name}</h3><p class="hf-defence">{defence}</p></div>'
        '<p class="hf-outcome hf-{kind}">{outcome}</p></header>'
        "{strip}{bars}{sets}{facts}</section>"
    ).format(
        name=text(trial.name),
        defence=text(defence),
        kind=trained,
        outcome=text(trial.outcome),
        strip=_strip(trial),
        bars=_bars(trial),
        sets=_sets(trial),
        facts=_facts(trial),
    )


def _strip(trial: Trial) -> Markup:
    from ..figures.example import perturbation
    from ..report.pictures import png

    delta = (trial.adversarial - trial.image).numpy()
    shown, how = perturbation(delta, trial.threat)
    pictures = [
        ("clean", trial.image.numpy(), _answer(trial, trial.clean)),
        ("perturbation", shown, Markup('<span class="hf-how">{}</span>').format(text(how))),
        ("attacked", trial.adversarial.numpy(), _answer(trial, trial.attacked)),
    ]
    figures = [
        Markup('<figure><img src="{}" alt="{}"><figcaption><b>{}</b> {}</figcaption></figure>')
        .format(png(pixels), f"{title} image of {page_text(trial.source)}", title, said)
        for title, pixels, said in pictures
    ]  # fmt: skip
    return Markup('<div class="hf-strip">{}</div>').format(Markup("").join(figures))


def _answer(trial: Trial, look: Look) -> Markup:
    from ..figures.subject import percent

    answer = look.answer
    right = answer.label == trial.label
    return Markup('<span class="hf-{}">{} {}</span> {}').format(
        "right" if right else "wrong",
        "✓" if right else "✗",
        text(trial.class_name(answer.label)),
        percent(answer.confidence),
    )


def _bars(trial: Trial) -> Markup:
    """The likeliest classes, before and after, each a bar."""
    from ..figures.subject import percent

    before, after = trial.clean.probabilities, trial.attacked.probabilities
    if bool(before.isnan().any()) or bool(after.isnan().any()):
        return Markup('<p class="hf-quiet">This model answers with labels alone.</p>')
    order: dict[int, None] = {}
    for ranks in zip(trial.attacked.likeliest(BARS), trial.clean.likeliest(BARS), strict=True):
        order.update(dict.fromkeys(each.label for each in ranks))
    labels = sorted(list(order)[:BARS], key=lambda label: -float(before[label]))
    rows = []
    for label in labels:
        own = {"clean": float(before[label]), "attacked": float(after[label])}
        bars = [
            Markup('<span class="hf-bar hf-bar-{}"><i style="width:{:.2f}%"></i></span>').format(
                kind, 100 * share if math.isfinite(share) else 0
            )
            for kind, share in own.items()
        ]
        rows.append(
            Markup(
                '<tr><th scope="row">{}</th><td class="hf-bars" aria-hidden="true">{}</td>'
                "<td>{}</td><td>{}</td></tr>"
            ).format(
                text(trial.class_name(label)),
                Markup("").join(bars),
                percent(own["clean"]),
                percent(own["attacked"]),
            )
        )
    return Markup(
        '<table class="hf-table"><thead><tr><th scope="col">class</th>'
        '<td></td><th scope="col"><span class="hf-key hf-key-clean"></span>clean</th>'
        '<th scope="col"><span class="hf-key hf-key-attacked"></span>attacked</th></tr></thead>'
        "<tbody>{}</tbody></table>"
    ).format(Markup("").join(rows))


def _sets(trial: Trial) -> Markup:
    if trial.clean.classes is None:
        return Markup("")

    def chips(look: Look) -> Markup:
        held = look.classes or ()
        names = [
            Markup('<span class="hf-chip{}">{}</span>').format(
                " hf-chip-true" if label == trial.label else "", text(trial.class_name(label))
            )
            for label in held
        ]
        return Markup(" ").join(names) or Markup('<span class="hf-quiet">empty</span>')

    return Markup(
        '<dl class="hf-sets"><dt>conformal set, clean</dt><dd>{}</dd>'
        "<dt>conformal set, attacked</dt><dd>{}</dd></dl>"
    ).format(chips(trial.clean), chips(trial.attacked))


def _facts(trial: Trial) -> Markup:
    smallest = trial.smallest_said if trial.searched else "press “Attack” and it is looked for"
    return Markup(
        '<dl class="hf-facts"><dt>smallest ε found to break it</dt><dd>{}</dd>'
        "<dt>attack</dt><dd>{}, {}; {}</dd></dl>"
    ).format(text(smallest), text(trial.attack), text(trial.threat), f"{trial.seconds:.1f} s")


def style(rules: str) -> str:
    """The page's style sheet, with the report's colours as variables."""

    def variables(colours: dict[str, str]) -> str:
        return "".join(f"--hf-{name}:{value};" for name, value in colours.items())

    return f":root{{{variables(LIGHT)}}}\n.dark{{{variables(DARK)}}}\n{rules}"
