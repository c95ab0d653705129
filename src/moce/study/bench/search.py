"""Rows of the search for a task's sub-model: from the run folder to the encoder, by each of four strategies.

    vote, per-layer    one pass of the frozen dense encoder over the task's training pictures
    knn                every distinct sub-model passes over them, and nearest neighbours say which suits the labels
    oracle             the same with a linear probe of each

The pictures are surveyed first, as `moce evaluate` does it, which keeps those of one size decoded; others are decoded
anew in every pass, and that is in the times.
"""

from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path

from moce.config import EvaluateConfig
from moce.engine.files import read_json
from moce.images.loader import survey
from moce.images.tasks import Task, open_tasks
from moce.model.weights import read_header
from moce.study.bench.passes import Passes
from moce.study.bench.settings import Setting
from moce.study.bench.timing import Call, Variant
from moce.transfer.encoder import channels_of
from moce.transfer.evaluate import encoder_for
from moce.transfer.pictures import BATCH
from moce.transfer.probe import INVERSE_L2, fitting_seconds
from moce.transfer.submodels import forget_tasks
from moce.verbs import resolve

# What `moce evaluate` is asked for; the oracle alone depends on the protocol.
PROTOCOLS = {"vote": "knn", "per-layer": "knn", "knn": "knn", "oracle": "linear"}
TASK_IMAGES = 120  # of the built-in task to train on
KIND = "creatures"


@dataclass
class Search:
    """A run with experts, a task, and how many sub-models each strategy tried.

    `moce` is the run's folder, by default one that is made by the verbs in seconds, with fitted gates; `task` and
    `data_root` are as for `moce evaluate`, by default a built-in kind.
    """

    setting: Setting
    moce: str | None = None
    task: str | None = None
    data_root: str | None = None
    tried: dict[str, int] = field(default_factory=dict)

    @cached_property
    def run(self) -> Path:
        """The run's folder."""
        if self.moce is not None:
            return Path(self.moce)
        return Passes(self.setting, gate_start="fitted").runs / "moce"

    @cached_property
    def pictures(self) -> Task:
        """The task."""
        side, number = self.setting.dense.image_size, min(TASK_IMAGES, self.setting.amounts.num_files)
        name = self.task or f"toyworld://{KIND}?size={side}&num={number}"
        return open_tasks(name, self.data_root, channels_of(str(self.run)))[0]

    def job(self, strategy: str) -> Call:
        """The search by one strategy, as `moce evaluate` does it."""
        setting, protocol = self.setting, PROTOCOLS[strategy]
        options = {"num_workers": setting.options.num_workers, "device": str(setting.device), "quiet": True}
        asked = {"model": str(self.run), "task": "-", "protocol": protocol, "seed": setting.options.seed}
        config = resolve(EvaluateConfig, {**asked, **options})

        def search() -> None:
            forget_tasks()
            found = encoder_for(self.pictures, protocol, strategy, None, config, setting.device)
            self.tried[strategy] = found.about["choice"].get("tried", 1)

        return Call(search, 0.0, setting.device)

    def fitting_seconds(self) -> float | None:
        """About how long the linear probes of all sub-models take, beyond their features; None where nobody knows."""
        if not (self.run / "routing.json").is_file():  # a run of an older version
            return None
        header = read_header(self.run / "model.safetensors")["experts"]
        table = read_json(self.run / "routing.json")
        number = len(set(zip(*(layer["expert"] for layer in table.values()), strict=True)))
        task, fits = self.pictures, len(INVERSE_L2) + 2
        return number * fitting_seconds(len(task.train), header["cluster_width"], task.num_classes, fits)

    def variants(self) -> list[Variant]:
        """The rows of the search, which take turns; `images` are the task's training pictures."""
        survey(self.pictures.train, quiet=True)
        about = self.setting.about("fp32", BATCH, pictures=self.pictures.train.uri)
        images = len(self.pictures.train)
        return [
            Variant(f"search-{name}", about, images, partial(self.job, name), "search-vote")
            for name in PROTOCOLS
        ]
