"""Every option of every verb: its name, its default, what it does and where the value comes from.

One frozen dataclass per verb. The command line, the Python functions, `config.json` in a run folder and the check
"did a method option change since this run was started?" are all derived from these fields, so an option is added in
one place. What a field may be and what its role means is said in options.py.

The defaults are the preset that is taken where none is named; presets.py says what the others set. Help texts that
end in (C), (L), (R), (M) or (ours) say where a value comes from (SOURCES in options.py).
"""

import dataclasses
from dataclasses import dataclass
from typing import Literal

from moce.options import given, method, output, speed
from moce.presets import DEFAULT


@dataclass(frozen=True, kw_only=True)
class Common:
    """Options of all verbs."""

    seed: int = method(0, "everything random is a function of this number", at_least=0, below=2**63)
    device: str = speed("auto", "auto, cpu, cuda or cuda:N")
    quiet: bool = output(False, "print nothing but errors")
    json: str | None = output(
        None, "write the result to this file as JSON; a file that holds anything but a result is refused"
    )
    overwrite: bool = output(False, "start again where a run is already there")

    def idle(self) -> tuple[str, ...]:
        """Method options that change nothing, whatever they are, given the others."""
        return ()


@dataclass(frozen=True, kw_only=True)
class Distributed(Common):
    """Options of everything that several processes can do together."""

    devices: int = speed(
        1, "processes on this machine, one for each GPU; torchrun starts them on several machines", at_least=1
    )
    timeout_minutes: float = speed(
        10.0, "with several processes: how long one waits for another before it gives up", above=0
    )


@dataclass(frozen=True, kw_only=True)
class Pictures(Common):
    """Options of stages that are continued with the same pictures alone."""

    hash_content: bool = speed(
        False,
        "also compare all bytes of the pictures, not only names, sizes and number, with those that a continued run or "
        "the clusters had; reads all of them once",
    )


@dataclass(frozen=True, kw_only=True)
class Training(Pictures, Distributed):
    """Options of everything that trains on pictures."""

    preset: str | None = given(
        default=DEFAULT, help="recipe that the options not given come from (see `moce --help`)"
    )
    epochs: int = method(20, "passes over the pictures", at_least=1)
    steps: int = method(0, "updates, whatever --epochs says; 0: as many as its passes take", at_least=0)
    batch_size: int = method(128, "pictures per step, over all processes", at_least=1)
    base_lr: float = method(
        2e-3, "peak learning rate = base_lr * batch size / 256 (rule C, short runs M)", at_least=0
    )
    weight_decay: float = method(
        0.05, "AdamW's, not on biases, norms, cls, positions and gates (C)", at_least=0
    )
    beta2: float = method(0.95, "AdamW's second moment decay; the first is 0.9 (C)", at_least=0, below=1)
    warmup: float = method(
        0.05, "share of the steps over which the learning rate rises (M)", at_least=0, at_most=1
    )
    min_crop: float = method(
        0.2, "smallest area of a random crop, as a share of the picture (C)", above=0, at_most=1
    )
    flip: bool = method(True, "mirror half of the pictures (C)")
    order: Literal["global", "shards"] = method("global", "shuffle all pictures, or shards and a window")
    num_workers: int = speed(
        -1, "processes that decode pictures; -1: as many as there are spare cores, at most 8", at_least=-1
    )
    cache_gib: float = speed(
        4.0, "pictures of one size are kept decoded in memory up to this many GiB", at_least=0
    )
    precision: Literal["auto", "fp32", "bf16"] = speed(
        "auto", "auto: bf16 where the hardware multiplies in it"
    )
    compile: bool = speed(False, "compile the step of pretrain with torch.compile")
    shard: bool = speed(
        False, "with several processes: spread weights, gradients and AdamW's moments over them (FSDP2)"
    )
    checkpoint_minutes: float = speed(5.0, "time between checkpoints", at_least=0)
    checkpoint_steps: int = speed(0, "steps between checkpoints; 0: by time alone", at_least=0)
    log_steps: int = speed(20, "steps between lines of metrics.jsonl", at_least=1)
    wandb: str | None = output(None, "also draw the metrics in this project of Weights & Biases")


@dataclass(frozen=True, kw_only=True)
class PretrainConfig(Training):
    """Train a dense masked autoencoder from pictures without labels."""

    images: str = given(
        "pictures: a folder, a parquet file or glob, wds:GLOB of tar files, hf://NAME?split=train, "
        "torchvision://NAME?root=DIR&train=true, toyworld://KIND?split=train, classes:FILE:IMAGES"
    )
    out: str = output(dataclasses.MISSING, "folder of the run")
    init: str | None = given(
        "start from these weights: a run of ours, timm:NAME, hf:NAME (ViTMAE), or a file of timm's or of the official "
        "MAE code; --image-size may be another",
        default=None,
    )
    epochs: int = method(20, "passes over the pictures; 0: the weights of --init as they are", at_least=0)
    model: str = method(
        "vit_tiny", "size of the encoder: any plain ViT of timm, such as vit_base_patch16_224"
    )
    image_size: int | tuple[int, int] = method(
        64, "side of the square that the model sees, in pixels, or height x width: 96x64", at_least=1
    )
    patch_size: int | tuple[int, int] = method(8, "side of a patch, in pixels, or height x width", at_least=1)
    channels: int = method(
        3, "channels of a picture: 1 grey, 3 colour, 4 with alpha, any number of arrays and TIFFs",
        at_least=1, at_most=64,
    )  # fmt: skip
    decoder_depth: int = method(4, "blocks of the decoder (C: 8 for ViT-B)", at_least=1)
    decoder_width: int = method(96, "width of the decoder (C: 512 for ViT-B)", at_least=1)
    decoder_heads: int = method(3, "attention heads of the decoder (C: 16 for ViT-B)", at_least=1)
    mask_ratio: float = method(
        0.75, "share of the patches that the encoder does not see (C)", above=0, below=1
    )
    norm_target: bool = method(True, "predict pixels normalised within each patch (C)")


@dataclass(frozen=True, kw_only=True)
class ClusterConfig(Pictures, Distributed):
    """Cluster pictures into balanced clusters of a dense model's features."""

    enc: str = given("run folder of the dense model", positional=True)
    images: str = given("the pictures to cluster: those of pre-training")
    out: str = output(dataclasses.MISSING, "folder of the clusters")
    preset: str | None = given(default=None, help="recipe; by default that of the dense model's run")
    num_clusters: int = method(64, "clusters (R: 256 for ImageNet, fewer for less data)", at_least=2)
    rounding: Literal["capacity", "argmax"] = method(
        "capacity", "hard labels: n/m a cluster, rounded up or down, or the plain argmax of the plan (L)"
    )
    whiten: float = method(
        0.0,
        "scale the features' principal axes by their deviation to the power of minus this: 0 leaves them, 1 makes them "
        "alike (ours)",
        at_least=0,
        at_most=1,
    )
    eps: float = method(0.05, "entropy of the plan, on cosine scores (L: SwAV)", above=0)
    rounds: int = method(
        15,
        "rounds of plan and centroids in turn (R/L); of 2,048 pictures per cluster and more all but the last five "
        "look at a part of them (ours)",
        at_least=1,
    )
    kmeans_iterations: int = method(25, "spherical k-means steps that the centroids start from", at_least=0)
    tolerance: float = method(1e-3, "largest error of the plan's marginals (R)", at_least=0)
    batch_size: int = speed(256, "pictures per pass of the encoder", at_least=1)
    num_workers: int = speed(
        -1, "processes that decode pictures; -1: as many as there are spare cores, at most 8", at_least=-1
    )


# What means something where gates learn to choose, and where they read clusters.
ROUTING_OPTIONS = ("shared_gradient", "gate_noise", "gate_lr", "output_scale")
CLUSTER_GATE_OPTIONS = ("imbalance", "gate_start", "embedding")


@dataclass(frozen=True, kw_only=True)
class ExpertsConfig(Training):
    """Train experts that are chosen by the cluster of a picture, or one of the controls."""

    mae: str = given("run folder of the dense model", positional=True)
    clusters: str = given("folder of its clusters", positional=True)
    images: str = given("the pictures of the clusters")
    out: str = output(dataclasses.MISSING, "folder of the run")
    preset: str | None = given(default=None, help="recipe; by default that of the dense model's run")
    epochs: int = method(5, "passes over the pictures", at_least=1)
    base_lr: float = method(
        1e-3, "peak learning rate = base_lr * batch size / 256: half of pretrain's (L)", at_least=0
    )
    gate: Literal["cluster", "token", "none", "sdr"] = method(
        "cluster",
        "what the gate reads: the picture's cluster (MoCE), each token (TokenMoE), or no experts (MAE*); sdr: sub-nets "
        "that share half of the MLP, one for each group of clusters (SDR)",
    )
    layers: tuple[int, ...] = method((9, 11), "encoder blocks whose MLP becomes experts, counted from 0 (L)")
    num_experts: int = method(8, "experts in each of these blocks (L)", at_least=2)
    top_k: int = method(1, "experts that a picture (or token) passes through (L)", at_least=1)
    balance: float = method(
        0.01, "weight of the load balance over experts (form C, weight L; token gate: both parts)", at_least=0
    )
    imbalance: float = method(
        0.005,
        "weight of the loss that makes each cluster's choice sharp (name C, form R, weight M)",
        at_least=0,
    )
    distill: float = method(
        1.0, "weight of the distance to the dense model's features (existence R, form L)", at_least=0
    )
    expert_lr: float = method(
        1.0,
        "factor of the learning rate of the experts' weights: each sees a part of the pictures only (1 M; 0.5 is the "
        "square root of a quarter)",
        above=0,
    )
    shared_gradient: float = method(
        0.0,
        "what a picture that another expert sees counts in an expert's gradient, its own counting 1: 0, nothing "
        "(L); 1, as much, so that all experts stay the same (ours)",
        at_least=0,
        at_most=1,
    )
    gate_noise: float = method(
        1.0, "standard deviation of the noise on the gate's logits, times 1/experts (C, L)", at_least=0
    )
    gate_lr: float = method(1e-3, "learning rate of the gates, whatever the batch (M)", at_least=0)
    gate_start: Literal["fitted", "random", "super-centroids"] = method(
        "fitted",
        "fit the gates on the centroids before any expert moves; leave them at N(0, 0.02); or start each expert's at "
        "the centroid of a cluster of centroids (M; the last ours)",
    )
    embedding: Literal["centroid", "learned", "random"] = method(
        "centroid",
        "what the gate reads of a cluster: its centroid (L), a random vector that is trained along, or one that is not",
    )
    shuffle_clusters: bool = method(
        False, "control: deal the clusters out to the pictures at random; their sizes stay (random clusters)"
    )
    only_clusters: tuple[int, ...] | None = method(
        None,
        "control: train on the pictures of these clusters alone, with as many updates as on all (data selection; "
        "--gate none)",
        at_least=0,
    )
    only_mlps: bool = method(
        False,
        "control: train the MLPs of --layers alone and leave all else as in the dense model; with --only-clusters what "
        "experts could gain at most by differing (--gate none)",
    )
    distill_until: float = method(
        1.0,
        "share of training up to which distillation keeps its weight; within a tenth more it is faded out (ours)",
        at_least=0,
        at_most=1,
    )
    output_scale: Literal["straight-through", "raw"] = method(
        "straight-through", "what multiplies an expert's output: p/stopgrad(p), exactly 1, or p itself (L)"
    )
    dispatch: Literal["sorted", "loop", "grouped"] = speed(
        "sorted",
        "how pictures reach their experts: sorted, one product for each; loop, the reference, which computes all; "
        "grouped, one product for all, before which a GPU is not asked how many rows each gets",
    )

    def idle(self) -> tuple[str, ...]:
        """What the gate does not use."""
        no_gate = ("top_k", "balance", *ROUTING_OPTIONS, *CLUSTER_GATE_OPTIONS)
        no_experts = ("num_experts", "expert_lr", *no_gate)
        return {
            "cluster": (),
            "token": CLUSTER_GATE_OPTIONS,
            "sdr": no_gate,
            "none": no_experts if self.only_mlps else ("layers", *no_experts),
        }[self.gate]


@dataclass(frozen=True, kw_only=True)
class CustomizeConfig(Pictures):
    """Slice the experts that fit a task out of a model with experts: a plain ViT that timm loads."""

    moce: str = given("run folder of train-experts", positional=True)
    images: str | None = given("the task's pictures; of their labels knn alone reads any", default=None)
    out: str = output(dataclasses.MISSING, "folder of the customised model")
    strategy: str | None = method(
        None,
        "vote, per-layer, average, nearest, cluster:K, knn (the pictures' labels choose) or random; by default vote, "
        "for sub-nets of SDR knn (vote R; the others but knn ours)",
    )
    strict: bool = method(False, "exit 2 where no cluster fits the task, instead of a warning")
    image_size: int | tuple[int, int] | None = method(
        None, "size of the customised model's pictures, if not that of pre-training: 128 or 96x64", at_least=1
    )
    batch_size: int = speed(256, "pictures per pass of the encoder", at_least=1)
    num_workers: int = speed(
        -1, "processes that decode pictures; -1: as many as there are spare cores, at most 8", at_least=-1
    )


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig(Distributed):
    """Measure what a model is worth on a task."""

    model: str = given("a run folder, a customised model, timm:NAME or hf:NAME (ViTMAE)", positional=True)
    task: str = given(
        "a folder with train and test; all, or a name below --data-root: of a folder there, or aircraft, caltech101, "
        "cars, cifar10, cifar100, dtd, flowers102, food101, pets, sun397, voc2007, imagenet1k as torchvision lays them "
        "out; toyworld://KIND; hf://NAME; for detect a folder in COCO's format, for segment one in ADE20K's, or parquet"
    )
    protocol: str = method("knn", "knn, linear, finetune, detect, segment")
    preset: str | None = method(
        None,
        "recipe that the options not given come from: small or coco of detect, small or ade20k of segment",
    )
    out: str | None = output(
        None,
        "finetune, detect, segment: folder of checkpoints, weights, predictions and pictures; by default beside "
        "--json, of its name",
    )
    data_root: str | None = given("folder that the named tasks are in", default=None)
    download: bool = given(
        "let torchvision download a data set of the field that is not in --data-root", default=False
    )
    shots: int | None = method(
        None,
        "few-shot: so many training pictures of each class, drawn by --seed, and no validation pictures; usual are 1, "
        "5 and 10",
        at_least=1,
    )
    image_size: int | tuple[int, int] | None = method(
        None, "size of the pictures, if not the model's own: 128 or 96x64 (height x width)", at_least=1
    )
    strategy: str | None = method(
        None,
        "how a sub-model is chosen where the model has several: as for `moce customize`, or oracle (each is tried, and "
        "validation by the protocol chooses); by default vote, for sub-nets of SDR knn",
    )
    epochs: int = method(40, "finetune, detect: passes over the training pictures", at_least=1)
    steps: int = method(0, "segment: training steps", at_least=0)
    batch_size: int = method(
        64, "finetune, detect, segment: pictures per step, over all processes", at_least=1
    )
    lrs: tuple[float, ...] = method(
        (5e-4, 1e-3, 2e-3),
        "finetune: peak learning rates that validation chooses from; detect, segment: the one that is taken",
        above=0,
    )
    layer_decay: float = method(
        0.75,
        "finetune, detect, segment: factor of the learning rate from block to block, downwards (C)",
        above=0,
        at_most=1,
    )
    window: int = method(
        0,
        "detect: side in patches of the windows that all but four blocks see (C: 14); 0: all see everything",
        at_least=0,
    )
    precision: Literal["auto", "fp32", "bf16"] = speed(
        "auto", "finetune, detect, segment: auto trains in bf16 where the hardware multiplies in it"
    )
    checkpoint_minutes: float = speed(5.0, "finetune, detect, segment: time between checkpoints", at_least=0)
    checkpoint_steps: int = speed(
        0, "finetune, detect, segment: steps between checkpoints; 0: by time alone", at_least=0
    )
    k: tuple[int, ...] = method(
        (1, 5, 10, 20, 50), "knn: neighbours that validation chooses from", at_least=1
    )
    temperature: tuple[float, ...] = method(
        (0.005, 0.01, 0.02, 0.03, 0.07, 0.2),
        "knn: temperatures that validation chooses from; of seven small tasks none chose 0.002 (M)",
        above=0,
    )
    whiten: tuple[float, ...] = method(
        (0.0,),
        "knn: powers that validation chooses from; features are centred and their principal axes scaled by their "
        "deviation to minus that: 0 leaves features as they are, 1 makes axes alike (ours)",
        at_least=0,
        at_most=1,
    )
    num_workers: int = speed(
        -1, "processes that decode pictures; -1: as many as there are spare cores, at most 8", at_least=-1
    )


@dataclass(frozen=True, kw_only=True)
class DemoConfig(Common):
    """The whole main job on built-in pictures, in minutes."""

    out: str = output("runs/demo", "folder of the demonstration; report.html is the page")
    preset: str = given(default="demo", help="recipe; debug ends in seconds")


@dataclass(frozen=True, kw_only=True)
class StudyConfig(Common):
    """Train several methods, measure them on several tasks, and compare."""

    kind: Literal["compare", "negative-transfer", "ablate", "efficiency"] = given(
        "compare (methods against each other), negative-transfer, ablate or efficiency", positional=True
    )
    out: str = output(
        dataclasses.MISSING, "folder of the study: runs, cells, tables; the same one continues it"
    )
    config: str | None = given(
        "TOML file: pictures, tasks, protocols, arms and their options; by default a small one on built-in pictures",
        default=None,
    )
    seeds: tuple[int, ...] | None = method(
        None, "seeds of training and evaluation; by default those of the file, else --seed", at_least=0
    )
    budget_minutes: float | None = speed(
        None,
        "stop after this many minutes, at a checkpoint or between evaluations; 0: only write the tables",
        at_least=0,
    )
    tried: str | None = output(
        None, "CSV file to which every configuration that was measured is also added, once"
    )


@dataclass(frozen=True, kw_only=True)
class PrepareConfig(Pictures):
    """Turn pictures into few small files that train fast."""

    images: str = given("pictures: whatever the other verbs take")
    out: str = output(dataclasses.MISSING, "folder of the prepared pictures; give it as --images afterwards")
    short_side: int = method(
        dataclasses.MISSING,
        "pictures with a longer short side are resized to it; none is enlarged",
        at_least=1,
    )
    format: Literal["parquet", "tar", "array"] = method(
        "parquet",
        "parquet or webdataset tar files of whole pictures as JPEGs; array: the pixels of central squares in a memory "
        "map, for pictures of up to about 96 pixels",
    )
    quality: int = method(90, "of the JPEGs", at_least=1, at_most=95)
    shard_mib: float = method(
        256.0, "size of a file; array: what is written between notes of progress", above=0
    )
    channels: int = method(3, "array: 1 (grey) or 3; the others keep grey and colour as they are", at_least=1)
    num_workers: int = speed(
        -1, "processes that decode pictures; -1: as many as there are spare cores, at most 8", at_least=-1
    )


@dataclass(frozen=True, kw_only=True)
class ReportConfig(Common):
    """One self-contained page of the given runs."""

    runs: tuple[str, ...] = given("run folders and evaluation JSON files", positional=True)
    out: str = output(dataclasses.MISSING, "the page, an .html file")


@dataclass(frozen=True, kw_only=True)
class InspectConfig(Common):
    """Say what a file or folder of ours holds."""

    path: str = given(
        "a run or prepared folder, a model file, a clusters file or a customised model", positional=True
    )


RowName = Literal[
    "step-dense", "step-experts", "step-token", "step-mae-star", "step-hf-vitmae", "loader", "train-with-loader",
    "features", "clusters", "customize",
]  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class BenchConfig(Common):
    """Time the program on this machine, beside what one would otherwise use."""

    only: tuple[RowName, ...] | None = speed(None, "rows, separated by commas; by default all")
    models: tuple[Literal["vit-ti/8", "vit-b/16"], ...] | None = speed(
        None, "vit-ti/8, vit-b/16 or both; by default the small one, on a GPU both"
    )
    repeats: int = speed(5, "turns of each row, whose median counts", at_least=1)
    batch_size: int | None = speed(
        None, "pictures per step; by default 128 and 16 on a CPU, 512 and 128 on a GPU", at_least=1
    )
    precision: Literal["auto", "fp32", "bf16"] = speed(
        "auto", "auto: bf16 where the hardware multiplies in it"
    )
    images: str | None = given(
        "pictures that the files for loading are made of; by default built-in ones", default=None
    )
    num_workers: int = speed(
        -1, "processes that decode pictures; -1: as many as there are spare cores", at_least=-1
    )
    cluster_images: int | None = speed(
        None,
        "clusters: number of synthetic features, such as 1281167; by default what takes seconds",
        at_least=256,
    )
    with_compiled: bool = speed(False, "also compile the peer, which takes minutes")
    quick: bool = speed(False, "one turn of tiny sizes, to see that everything runs")


CONFIGS: dict[str, type[Common]] = {
    "demo": DemoConfig,
    "prepare": PrepareConfig,
    "pretrain": PretrainConfig,
    "cluster": ClusterConfig,
    "train-experts": ExpertsConfig,
    "customize": CustomizeConfig,
    "evaluate": EvaluateConfig,
    "study": StudyConfig,
    "report": ReportConfig,
    "inspect": InspectConfig,
    "bench": BenchConfig,
}  # by verb
