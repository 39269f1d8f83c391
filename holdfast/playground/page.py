"""The page, made of Gradio's parts: what is chosen on the left, what was found on the right."""

from __future__ import annotations

import inspect
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path
from typing import Any
from unittest import mock

from ..errors import HoldfastError, InputError
from . import panel
from .guard import MOST_PIXELS, MOST_UPLOAD
from .workshop import BARE, Workshop

WAITING = 20  # jobs that may wait for their turn
JOB = "job"  # of which there is one at a time
EVERY = 0.2  # seconds between two words on how a job goes
NORMS = {"L∞ (every value a little)": "linf", "L2 (in all a little)": "l2", "L1 (few values)": "l1"}
# norm → the unit of the slider, its end, its step, and where it stands
SCALES = {
    "linf": (1 / 255, 32.0, 0.5, 8.0, "ε, in 1/255 of a value's range"),
    "l2": (1.0, 3.0, 0.05, 0.5, "ε, length of the change (L2)"),
    "l1": (1.0, 40.0, 0.5, 12.0, "ε, sum of all changes (L1)"),
}
USUAL = "PGD (the usual one)"
ATTACKS = {
    USUAL: None,
    "FGSM (a single step)": "fgsm",
    "APGD (steps that adapt)": "apgd",
    "FMN (the closest point)": "fmn",
    "Square (without gradients)": "square",
}
USUAL_DEFENCE = "jpeg"  # of the second model, where there is only one
OWN_ANSWER = "the model's own answer"
BOARD = """<canvas width="280" height="280" role="img" aria-label="Drawing board"></canvas>
<div class="hf-ink"><label>Ink <input type="color" value="#000000"></label>
<button type="button">Clear</button></div>"""


@contextmanager
def _quick_import() -> Iterator[None]:
    """Inside, Gradio's components write no type stubs of themselves, which takes it a second."""
    file_of = inspect.getfile

    def getfile(thing: Any) -> str:
        if str(getattr(thing, "__module__", "")).startswith(("gradio", __package__)):
            raise OSError  # as for a class that stands in no file
        return file_of(thing)

    with mock.patch.object(inspect, "getfile", getfile):
        yield


def imported() -> Any:
    """Gradio.

    Raises:
        InputError: it is not installed.
    """
    try:
        with _quick_import():
            import gradio
    except ImportError as error:
        if error.name and error.name.partition(".")[0] != "gradio":
            raise InputError(
                f"play needs {error.name}, which is missing: pip install 'holdfast[play]'"
            ) from None
        raise InputError(
            "play needs Gradio, which is not installed: pip install 'holdfast[play]'"
        ) from None
    return gradio


def page(workshop: Workshop, folder: Path) -> Any:
    """The page, as Gradio's `Blocks`.

    Args:
        folder: where uploads are kept.
    """
    gr = imported()
    with _quick_import():
        picked_image = _image_input(gr)
    jobs = _Jobs(gr, workshop, folder)
    names = list(workshop.models)
    second = names[1] if len(names) > 1 else names[0]
    with gr.Blocks(
        title="Holdfast playground", analytics_enabled=False, delete_cache=(600, 3600)
    ) as blocks:
        gr.HTML(
            '<div class="hf-head"><h1>Holdfast playground</h1><p>Change an image a little, and see '
            "what two models make of it.</p></div>"
        )
        picked = gr.State(None, time_to_live=3600)
        with gr.Row():
            with gr.Column(scale=4, min_width=320):
                with gr.Tabs():
                    with gr.Tab("Examples"):
                        gallery = gr.Gallery(
                            label="Pick an image",
                            show_label=False,
                            columns=6,
                            allow_preview=False,
                            object_fit="contain",
                            buttons=[],
                            format="png",
                            elem_classes="hf-gallery",
                        )
                    with gr.Tab("Upload"):
                        upload = picked_image(
                            label="Your image, or your camera's",
                            sources=["upload", "webcam", "clipboard"],
                            type="filepath",
                            image_mode=None,
                            height=230,
                            buttons=[],
                            placeholder="Drop a PNG, JPEG, WebP, GIF, BMP or TIFF here,\nup to "
                            f"{MOST_UPLOAD // 2**20} MiB and {MOST_PIXELS // 10**6} megapixels",
                        )
                    with gr.Tab("Draw"):
                        drawing = gr.HTML(
                            html_template=BOARD,
                            js_on_load=_file("board.js"),
                            elem_classes="hf-board",
                        )
                        negative = gr.Checkbox(
                            label="Negative: white ink on black paper, as the embedded digits are",
                            value=True,
                        )
                with gr.Group():
                    norm = gr.Radio(list(NORMS), value=next(iter(NORMS)), label="What may change")
                    _, end, step, usual, said = SCALES["linf"]
                    eps = gr.Slider(step, end, usual, step=step, label=said)
                with gr.Group():
                    with gr.Row():
                        model_a = gr.Dropdown(
                            names, value=names[0], label="First model", scale=3, min_width=150
                        )
                        defence_a = gr.Dropdown(
                            [BARE], value=BARE, label="Its defence", scale=2, min_width=110
                        )
                    with gr.Row():
                        model_b = gr.Dropdown(
                            names, value=second, label="Second model", scale=3, min_width=150
                        )
                        defence_b = gr.Dropdown(
                            [BARE], value=BARE, label="Its defence", scale=2, min_width=110
                        )
                with gr.Group():
                    attack = gr.Dropdown(list(ATTACKS), value=USUAL, label="Attack")
                    steps = gr.Slider(1, 100, 20, step=1, label="Steps of the attack")
                label = gr.Dropdown(
                    [OWN_ANSWER],
                    value=OWN_ANSWER,
                    label="True class",
                    info="An answer counts as right if it is this one.",
                )
            with gr.Column(scale=8, min_width=320):
                with gr.Row():
                    go = gr.Button("Attack, and find the smallest ε", variant="primary", scale=3)
                    stop = gr.Button("Stop", scale=1, min_width=80)
                shown = gr.HTML(panel.waiting("Loading the models …"), elem_id="hf-found")
        asked = [
            picked, label, norm, eps, attack, steps, model_a, defence_a, model_b, defence_b,
        ]  # fmt: skip
        one = {"concurrency_id": JOB, "concurrency_limit": 1, "show_progress_on": shown}
        visitor = {"request": gr.Request}
        live = _handed(jobs.attack, visitor, gr.Progress(), closest=False)
        whole = _handed(jobs.attack, visitor, gr.Progress(), closest=True)

        loaded = [gallery, picked, label, norm, eps, defence_a, defence_b]
        begun = blocks.load(
            jobs.begin, None, loaded, api_visibility="private", show_progress="hidden"
        )
        attacks = [begun.then(live, asked, shown, api_visibility="private", **one)]
        for event, ask, given in (
            (gallery.select, _handed(jobs.choose_example, {"event": gr.SelectData}), None),
            (upload.change, jobs.choose_file, upload),
            (drawing.submit, _handed(jobs.choose_drawing, {"event": gr.EventData}), negative),
            (negative.input, jobs.choose_negative, [picked, negative]),
        ):
            chosen = event(
                ask, given, [picked, label], api_visibility="private", show_progress="hidden",
                trigger_mode="always_last", queue=False,
            )  # fmt: skip
            attacks.append(
                chosen.success(
                    live, asked, shown, api_visibility="private", trigger_mode="always_last", **one
                )
            )
        changed = norm.input(
            jobs.scale, norm, eps, api_visibility="private", show_progress="hidden", queue=False
        )
        attacks.append(changed.then(live, asked, shown, api_visibility="private", **one))
        renamed = model_a.input(
            jobs.label_choices, [model_a, label], label, api_visibility="private",
            show_progress="hidden",
        )  # fmt: skip
        attacks.append(renamed.then(live, asked, shown, api_visibility="private", **one))
        moved = gr.on(
            [
                eps.release, steps.release, attack.input, label.input, model_b.input,
                defence_a.input, defence_b.input,
            ],
            live, asked, shown, api_visibility="private", trigger_mode="always_last", **one,
        )  # fmt: skip
        pressed = go.click(
            whole, asked, shown, api_visibility="private", trigger_mode="once", **one
        )
        stop.click(  # what runs ends by itself, what waits is taken out of the queue
            _handed(jobs.stop, visitor), None, None, api_visibility="private", queue=False,
            cancels=[*attacks, moved, pressed],
        )  # fmt: skip
        # The same for programs, as `gradio_client` calls it.
        with gr.Group(visible=False):
            words = [gr.Textbox(label=each) for each in ("model", "norm", "defence", "label")]
            numbers = [gr.Number(label=each) for each in ("eps", "steps")]
            image, answer = picked_image(label="image", type="filepath"), gr.JSON(label="found")
            gr.Button("Ask").click(
                jobs.ask, [image, *words, *numbers], answer, api_name="try_image",
                concurrency_id=JOB, concurrency_limit=1,
            )  # fmt: skip
        blocks.unload(_handed(jobs.stop, visitor))
    blocks.queue(max_size=WAITING, api_open=False, default_concurrency_limit=4)
    return blocks


def theme() -> Any:
    """Gradio's theme with fonts of the reader's machine: nothing is fetched."""
    gr = imported()
    fonts = ["system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif"]
    mono = ["ui-monospace", "Menlo", "Consolas", "monospace"]
    return gr.themes.Base(
        primary_hue="teal", neutral_hue="zinc", font=fonts, font_mono=mono, radius_size="lg"
    ).set(
        button_primary_background_fill="*primary_700",
        button_primary_background_fill_dark="*primary_700",
        button_primary_background_fill_hover="*primary_800",
        button_primary_text_color="white",
        button_primary_text_color_dark="white",
        block_label_text_color="*neutral_700",
        block_label_text_color_dark="*neutral_200",
        block_info_text_color="*neutral_600",
        block_info_text_color_dark="*neutral_300",
    )


def style() -> str:
    """The page's style sheet."""
    return panel.style(_file("style.css"))


def _file(name: str) -> str:
    """A text that lies beside this file."""
    return (files(__package__) / name).read_text(encoding="utf-8")


def _image_input(gr: Any) -> Any:
    """Gradio's image input, which hands on a file as it is: who decodes it looks at it first."""

    class Image(gr.Image):
        is_template = True

        def preprocess(self, payload: Any) -> str | None:
            return None if payload is None or not payload.path else str(payload.path)

    return Image


class _Jobs:
    """What happens when something on the page is moved."""

    def __init__(self, gr: Any, workshop: Workshop, folder: Path):
        self.gr, self.workshop, self.folder = gr, workshop, folder
        self.stops: dict[str, threading.Event] = {}

    # --- before an attack ------------------------------------------------------------------------

    def begin(self) -> list[Any]:
        """The page once models and images are there."""
        gr = self.gr
        try:
            self.workshop.wait()
        except HoldfastError:
            return [gr.skip()] * 7  # the job that follows says it
        from ..evaluation.cards import threat_of

        second = self.workshop.models[1 if len(self.workshop.models) > 1 else 0]
        cards = [dict(self.workshop.card(name)) for name in (self.workshop.models[0], second)]
        trained = next((card for card in cards if card.get("threat")), {})
        threat = threat_of(None, None, trained)
        if threat.norm not in SCALES:
            threat = threat_of("linf", None, {})
        thumbnails = [_thumbnail(each.picture.pixels) for each in self.workshop.examples]
        defences = self.workshop.offered()
        behind = BARE
        if len(self.workshop.models) == 1:  # beside itself, behind what was asked for
            behind = [*self.workshop.defences, USUAL_DEFENCE][0]
        first = self.workshop.examples[0]
        return [
            gr.update(value=thumbnails),
            ("example", 0),
            self._labels(self.workshop.models[0], first.name),
            gr.update(value=next(word for word, norm in NORMS.items() if norm == threat.norm)),
            self._scaled(threat.norm, threat.eps),
            gr.update(choices=defences, value=BARE),
            gr.update(choices=defences, value=behind),
        ]

    def scale(self, norm: str) -> Any:
        """The slider in the norm's own unit."""
        return self._scaled(NORMS[norm], None)

    def _scaled(self, norm: str, eps: float | None) -> Any:
        unit, end, step, usual, said = SCALES[norm]
        value = usual if eps is None else min(end, max(step, round(eps / unit, 3)))
        return self.gr.update(minimum=step, maximum=end, step=step, value=value, label=said)

    def _labels(self, model: str, name: str | None) -> Any:
        classes = list(self.workshop.classes(model))
        value = name if name in classes else OWN_ANSWER
        return self.gr.update(choices=[OWN_ANSWER, *classes], value=value)

    def label_choices(self, model: str, label: str) -> Any:
        """The classes of another model."""
        try:
            return self._labels(model, label)
        except HoldfastError:
            return self.gr.skip()

    def choose_example(self, event: Any) -> tuple[Any, Any]:
        """An example is the image."""
        example = self.workshop.examples[int(event.index)]
        return ("example", int(event.index)), self._labels(self.workshop.models[0], example.name)

    def choose_file(self, path: str | None) -> tuple[Any, Any]:
        """An uploaded file is the image."""
        if path is None:
            return self.gr.skip(), self.gr.skip()
        return ("file", path), self.gr.update(value=OWN_ANSWER)

    def choose_drawing(self, negative: bool, event: Any) -> tuple[Any, Any]:
        """A drawing is the image."""
        held = event._data  # as board.js sends it
        path = held.get("path") if isinstance(held, dict) else None
        if not isinstance(path, str):
            return self.gr.skip(), self.gr.skip()
        return ("negative" if negative else "drawing", path), self.gr.update(value=OWN_ANSWER)

    def choose_negative(self, picked: tuple[str, Any] | None, negative: bool) -> tuple[Any, Any]:
        """A drawing as it was drawn, or its negative."""
        if picked is None or picked[0] not in ("negative", "drawing"):
            return self.gr.skip(), self.gr.skip()
        return ("negative" if negative else "drawing", picked[1]), self.gr.skip()

    # --- attacks ---------------------------------------------------------------------------------

    def attack(
        self,
        picked: tuple[str, Any] | None,
        label: str,
        norm: str,
        eps: float,
        attack: str,
        steps: float,
        model_a: str,
        defence_a: str,
        model_b: str,
        defence_b: str,
        request: Any,
        progress: Any,
        *,
        closest: bool,
    ) -> str:
        """What both models say, as HTML."""
        stop = threading.Event()
        session = str(request.session_hash)
        self.stops[session] = stop
        try:
            self.workshop.wait()
            if picked is None:
                return panel.EMPTY
            named = ATTACKS.get(attack)
            trials, card = self.workshop.run(
                self._picture(*picked),
                None if label == OWN_ANSWER else label,
                NORMS[norm],
                float(eps) * SCALES[NORMS[norm]][0],
                named,
                None if named == "fgsm" else int(steps) * (50 if named == "square" else 1),
                [(model_a, defence_a), (model_b, defence_b)],
                closest=closest,
                told=_Throttled(progress),
                stop=stop,
            )
            return panel.panel(trials, card)
        except HoldfastError as error:
            return panel.fault(str(error))
        finally:
            if self.stops.get(session) is stop:
                del self.stops[session]

    def ask(
        self,
        image: str | None,
        model: str,
        norm: str,
        defence: str,
        label: str,
        eps: float,
        steps: float,
    ) -> dict[str, Any]:
        """One uploaded image before one model, for programs: what `hf.try_image` finds, as JSON."""
        try:
            self.workshop.wait()
            if image is None:
                raise InputError("give an image")
            trials, card = self.workshop.run(
                self._picture("file", image),
                label or None,
                norm,
                float(eps),
                None,
                int(steps),
                [(model, defence or BARE)],
                closest=False,
                told=lambda share, word: None,
                stop=threading.Event(),
            )
        except HoldfastError as error:
            raise self.gr.Error(str(error)) from None
        return {**trials[0].to_dict(), "card": f"/card/{card}.png"}

    def _picture(self, kind: str, what: Any) -> Any:
        from ..one_image.picture import Picture, drawing_of, read_picture
        from ..runs.files import inside, read_bytes

        if kind == "example":
            return self.workshop.examples[what].picture
        path = Path(str(what))
        if path.is_absolute() and path.is_relative_to(self.folder):
            path = path.relative_to(self.folder)
        file = inside(self.folder, str(path))  # no path of somebody else's choosing
        if kind == "file":
            return Picture(read_picture(file, MOST_PIXELS).pixels, "your image")
        raw = read_bytes(file)
        return drawing_of(raw, "your drawing", MOST_PIXELS, negative=kind == "negative")

    def stop(self, request: Any) -> None:
        """End the job of a visitor who wants that, or who left."""
        found = self.stops.get(str(request.session_hash))
        if found is not None:
            found.set()


def _handed(
    function: Callable[..., Any], kinds: dict[str, type], progress: Any = None, **fixed: Any
) -> Callable[..., Any]:
    """A function as Gradio looks at it: it hands over what a parameter's annotation or its usual
    value ask for.

    Args:
        kinds: annotations by parameter.
        progress: the usual value of the parameter of that name.
        fixed: arguments that are always the same.
    """

    def call(*given: Any) -> Any:
        return function(*given, **fixed)

    parameters = []
    for name, each in inspect.signature(function).parameters.items():
        if name not in fixed:
            usual = progress if name == "progress" else each.default
            kind = kinds.get(name, each.empty)
            parameters.append(each.replace(default=usual, annotation=kind))
    call.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    call.__annotations__ = dict(kinds)
    call.__name__ = function.__name__
    return call


class _Throttled:
    """Tells the page how a job goes, a few times a second."""

    def __init__(self, progress: Any):
        self.progress, self.last = progress, 0.0

    def __call__(self, share: float | None, word: str) -> None:
        now = time.monotonic()
        if now - self.last >= EVERY:
            self.last = now
            self.progress((0, None) if share is None else share, desc=word)


def _thumbnail(pixels: Any) -> Any:
    """A picture of Pillow's, small, its pixels sharp where there are few."""
    from PIL import Image

    from ..canvas import Tile
    from .workshop import EXAMPLE_SIDE

    return Image.fromarray(Tile(pixels, EXAMPLE_SIDE, 1).pixels)
