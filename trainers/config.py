"""The choices of a training run, in groups: every field can be a flag, a line of a TOML file, or a keyword.

`TrainConfig` is what the loop needs; `RunConfig` is all groups together, flat. Which settings a task uses, and which
metrics it has, the tasks know (trainers/tasks): they refuse the others before any work is done.
"""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np

from lora_core.config import check_types
from trainers.other_names import meant

Config = TypeVar("Config", bound="RunConfig")


class Settings:
    """Base of the groups: every field is checked for its type, then each group checks its own ranges."""

    def __post_init__(self) -> None:
        check_types(self)

    def _at_least(self, least: int, *names: str) -> None:
        """Raise ValueError for a field of these that is a number below ``least``."""
        for name in names:
            value = getattr(self, name)
            if value is not None and value != "auto" and not value >= least:
                raise ValueError(f"{name} must be at least {least}, but it is {value}.")

    def _share(self, *names: str) -> None:
        """Raise ValueError for a field of these that is no share of a whole."""
        for name in names:
            value = getattr(self, name)
            if value is not None and not 0 <= value < 1:
                raise ValueError(f"{name} is a share, at least 0 and below 1, but it is {value}.")


@dataclass(frozen=True)
class TrainConfig(Settings):
    """How the model learns: steps, rates, precision, what a step holds."""

    epochs: int | None = None
    """Passes over the training data; 0 scores the model as it is. None: 3, of few examples more, 50 at most: as many as
    make 2,000 steps for words or a model that starts untrained, 200 for texts and images."""
    batch_size: int = 16
    """Examples per optimiser step, over all processes: the recipe. How a step is split up does not change it."""
    batch_tokens: int | None = None
    """Instead of batch_size: most tokens per optimiser step, over all processes, padding included. The number of
    examples of a step then depends on their lengths. None: batch_size counts."""
    micro_batch_size: int | None = None
    """Most examples in one training pass of one process (evaluation takes the tokens of four times as many);
    larger shares are accumulated. None: no limit."""
    micro_batch_tokens: int | Literal["auto"] | None = None
    """Most tokens, padding included, in one training pass of one process (evaluation takes four times as many): bounds
    memory and leaves the recipe as it is. An image counts as one. None: with fused layers on a CPU 384 a thread, at
    least 768 (ViT: the images that have so many), unless micro_batch_size is given; else no limit. auto, on a GPU: as
    many as fit its memory, found by trying before training begins."""
    learning_rate: float | None = None
    """Peak learning rate of AdamW. None: by method, task and the encoder's width, as the plan shows. At a width of 384
    and for words, texts, images: LoRA 2e-3, 1e-4 (8 times that for B), 2e-3; full 1e-4; in inverse proportion for wider
    ones. A head alone, or a model that starts untrained: 1e-3."""
    lora_plus_ratio: float | None = None
    """LoRA+: B learns at this many times the learning rate; 16 is its authors' choice, at a lower learning rate. None:
    8 with the learning rate of LoRA for texts, else 1."""
    head_rate_ratio: float = 1.0
    """LoRA: what is trained in full, the head above all, learns at this many times the learning rate."""
    weight_decay: float = 0.01
    """Decoupled weight decay of matrices; biases, norms and other vectors have none."""
    ema_decay: float = 0.0
    """Score and keep an average of the weights over the steps, an exponential one of this decay such as 0.999, which
    reaches over the last ninth of the steps at first. Takes memory as the trained weights do. 0: no average."""
    max_grad_norm: float = 1.0
    """Gradients are scaled down to this norm; 0 switches clipping off."""
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    """Course of the learning rate after warmup, down to zero at the last step."""
    warmup: float | None = None
    """Share of all steps in which the learning rate rises from zero. None: the recipe's, 0.06 for a pretrained model
    in full and for LoRA, else 0."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Arithmetic of matrix products: fp16 (with loss scaling) for V100, bf16 for newer GPUs and CPUs fast in it."""
    frozen: Literal["int8"] | None = None
    """Arithmetic of matrix products with frozen weights, on CPUs with AVX512-VNNI or AMX: int8 takes half the time of
    bf16, and rounds weights, activations and gradients, by about 1% of each product. What is trained stays in
    `precision`, and so does what is saved. None: as `precision` says, and so it is, after a warning, on other
    machines."""
    kernels: Literal["fused", "plain"] = "fused"
    """Fused layers compute what the plain ones do in less time and memory. They are for CUDA, where a small batch shows
    first that they do, and for the CPU in fp32 and bf16; elsewhere the plain ones are used."""
    compile: bool = False
    """Have torch.compile make kernels for the encoder's layers, for batches of any size: fewer kernels on a GPU, after
    up to some minutes. The layers are the plain ones then. Worth it where `benchmarks/gpu.sh` says so."""
    gradient_checkpointing: bool = False
    """Keep of every encoder layer only its input, and compute the layer again in the backward pass: several times less
    memory for activations, a third more time. The results stay the same."""
    group_by_length: int = 50
    """Batches are sorted by length within shuffled windows of this many; 1 is plain shuffling (twice the padding)."""
    adversarial: Literal["none", "fgm", "awp"] = "none"
    """Every step learns from its batch a second time, made harder by a step up the gradient: of the word embeddings
    (fgm) or of the trained matrices (awp). Costs twice the time."""
    adversarial_epsilon: float | None = None
    """Length of that step: for fgm the norm of the change to an example's embeddings, by default 1; for awp relative
    to the norm of each matrix, by default 0.005."""
    metric: str = "f1"
    """Validation score that selects the best epoch; higher is better, except for "loss". A regression has pearson in
    the place of f1."""
    patience: int | None = None
    """Stop after this many epochs without a better score. None: train all epochs."""
    checkpoint_steps: int | None = None
    """Write a checkpoint to resume from after every so many steps too, not only after every epoch."""
    checkpoint_minutes: float = 10.0
    """Write one when so many minutes have passed since the last; 0: no clock."""
    keep_checkpoints: int = 1
    """Resumable checkpoints to keep, newest first."""
    workers: int = 0
    """Processes that prepare batches ahead, on every rank: worth it for images and for GPUs. 0: the loop does it."""
    parallel: Literal["ddp", "fsdp"] = "ddp"
    """Several processes: each has the whole model (ddp), or a part of every parameter (fsdp), for models that do not
    fit one device. fsdp computes with the plain layers, in fp32 or bf16."""
    timeout: float = 600
    """Seconds that the processes of a run wait for each other before the run ends, naming who is missing."""
    seed: int = 42
    """Seed of the data order, of fresh heads and adapters, and of dropout."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._at_least(1, "batch_size", "batch_tokens", "micro_batch_size", "micro_batch_tokens", "group_by_length")
        self._at_least(1, "keep_checkpoints", "checkpoint_steps", "patience", "timeout")
        self._at_least(0, "epochs", "weight_decay", "max_grad_norm", "workers", "checkpoint_minutes", "seed")
        if self.seed >= 2**32:
            raise ValueError(f"seed is {self.seed}; expected less than {2**32:,}.")
        self._share("warmup", "ema_decay")
        if self.parallel == "fsdp" and (self.precision == "fp16" or self.adversarial != "none"):
            raise ValueError(
                f"parallel fsdp does not go with precision {self.precision} and adversarial {self.adversarial}: take "
                "fp32 or bf16 and none, or parallel ddp."
            )
        if self.parallel == "fsdp" and self.compile:
            raise ValueError("parallel fsdp does not go with compile: leave --compile out, or take parallel ddp.")
        if self.frozen is not None and (self.kernels == "plain" or self.compile or self.parallel == "fsdp"):
            raise ValueError(
                f"frozen {self.frozen} is for the fused layers: leave out --kernels plain, --compile and --parallel "
                "fsdp, or --frozen."
            )
        if self.micro_batch_tokens == "auto" and (self.parallel == "fsdp" or self.micro_batch_size is not None):
            raise ValueError(
                "micro_batch_tokens auto goes neither with parallel fsdp nor with micro_batch_size: give a number of "
                "tokens, or take parallel ddp and leave --micro-batch-size out."
            )
        for name in ("learning_rate", "adversarial_epsilon", "lora_plus_ratio", "head_rate_ratio"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"{name} must be above 0, but it is {value}.")

    def evaluation_tokens(self, lengths: np.ndarray) -> int:
        """Most tokens, padding included, of an evaluation batch of examples of these lengths (N,).

        Four times what a training pass takes, as no activations are kept; where that is counted in examples, of the
        mean length.
        """
        most = self.batch_tokens if self.micro_batch_tokens in (None, "auto") else self.micro_batch_tokens
        examples = self.micro_batch_size or self.batch_size
        return 4 * (most or examples * max(1, -(-int(lengths.sum()) // max(1, len(lengths)))))


SCRATCH = ("lstm", "bilstm-attention")
"""Names of the models that start from nothing, which are their model_type too."""


@dataclass(frozen=True)
class ModelSettings(Settings):
    """The model and its head."""

    task: Literal["token-classification", "text-classification", "image-classification"] = "token-classification"
    """What is predicted: a label for each word, text or image."""
    problem_type: Literal["auto", "single_label_classification", "multi_label_classification", "regression"] = "auto"
    """Texts: one label each; any number of labels each, none included; or a number to predict. auto: what the labels of
    the data are: names or ids, lists of them, or numbers with a point."""
    model: str = "embedded"
    """A folder in the transformers layout, a hub id such as roberta-base, or "embedded" (MiniLM-L6). Or a model that
    starts untrained, which takes method full: lstm or bilstm-attention."""
    tokenizer: str = ""
    """lstm, bilstm-attention: the model whose tokenizer is used; by default the words of the training texts."""
    head: Literal["default", "linear", "mlp", "lstm", "textcnn", "attention", "crf"] = "default"
    """Head of a text model; default: the family's own. Texts: linear and mlp read the first token, lstm, textcnn and
    attention all of them. Words: crf scores whole sequences of labels."""
    fresh_head: bool = False
    """Start with a new head where the checkpoint has one for other labels."""
    checkpoint_labels: tuple[str, ...] = ()
    """What the rows of the checkpoint's head stand for, in order, where its config.json says only LABEL_0, LABEL_1."""
    confusing_words: str = ""
    """Head attention: a file of words, one a line, that lose attention, however written; single tokens only."""
    confusing_penalty: float = 1.0
    """Head attention: taken from the score of those words before the softmax; 1 divides their weight by e."""
    crf_constraints: bool = False
    """Head crf: forbid what IOB2 forbids, an I- that continues no entity. The data must be IOB2."""
    attention_dropout: float = 0.0
    """Dropout of attention weights; above 0 a CPU cannot use its fast attention."""
    hidden_dropout: float | None = None
    """Dropout of hidden states; None: the checkpoint's own (0.1 for BERT)."""


@dataclass(frozen=True)
class DataSettings(Settings):
    """What the model learns from."""

    data: str = ""
    """A folder or file, a name inside $LORA_DATA_DIR, or a hub id such as tner/bionlp2004. Words: JSON lines (tner),
    parquet or CoNLL, or texts with spans (doccano, Prodigy, spaCy, Label Studio, brat); texts: CSV, JSON
    lines, parquet or a folder for each class; images: MedMNIST .npz, a folder for each class, or a table of paths."""
    columns: str = ""
    """Words: the columns of the word and of the tag in files of columns, as "2,4" (from 1) or as names in their header;
    by default what the content says."""
    text_column: str = ""
    """Texts: the column or key of the text, or of its parts ("title,body"), or a number from 1 as for `columns`; by
    default names that are usual."""
    pair_column: str = ""
    """Texts: the column or key of a second text, read with the first as a pair."""
    label_column: str = ""
    """Texts, images: the column or key of the label, or its number from 1; by default names that are usual."""
    delimiter: str = ""
    """What stands between columns, such as "," or "tab"; by default what the content says."""
    encoding: str = ""
    """Encoding of text files, such as utf-8 or cp1252; by default what the content says."""
    on_bad_row: Literal["error", "skip"] = "error"
    """What to do with a damaged row of the data: stop and name it, or count and report it."""
    train_examples: int | None = None
    """Train on so many examples only, of each label its share where each has one, and select the epoch on a validation
    split that is smaller in proportion. The choice does not depend on the seed. None: all."""
    test_examples: int | None = None
    """The same for the test split."""
    score_test: bool = True
    """Score the test split, where there is one, when training has ended. If not, it is left alone until the same
    command with --resume auto asks for it."""
    cache: bool = True
    """Keep pre-processed data in $LORA_CACHE_DIR, or ~/.cache/lora-core, for the next run."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._at_least(1, "train_examples", "test_examples")


@dataclass(frozen=True)
class LoRASettings(Settings):
    """How much of the model is trained, and LoRA's choices."""

    method: Literal["lora", "full", "head"] = "lora"
    """Train low-rank adapters and the head, every parameter, or the head alone."""
    train_head: bool = True
    """LoRA: train the head too; if not, it stays as it starts. It is saved with the adapter either way."""
    r: int = 16
    """LoRA: rank."""
    lora_alpha: float | None = None
    """LoRA: numerator of the scaling alpha / r; None means r."""
    lora_dropout: float = 0.1
    """LoRA: dropout on the adapters' input."""
    target_modules: tuple[str, ...] = ()
    """LoRA: a preset (qv, qkv, attention, all-linear) or suffixes of layer names; none: all-linear, of images qkv."""
    modules_to_save: tuple[str, ...] = ()
    """LoRA: modules trained in full beside the head and saved with the adapter, such as LayerNorm or word_embeddings:
    suffixes of their names."""
    bias: Literal["none", "all", "lora_only"] = "none"
    """LoRA: which bias vectors are trained too."""
    init_lora_weights: Literal["gaussian", "kaiming", "orthogonal", "pissa", "olora", "eva"] = "gaussian"
    """LoRA: how A and B start; eva: by what the layers see of 512 training examples, which shares out the ranks too."""
    use_rslora: bool = False
    """LoRA: scale by alpha / sqrt(r)."""
    use_dora: bool = False
    """LoRA: train a magnitude per output as well."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.train_head and self.method != "lora":
            raise ValueError(f"train_head is false with method {self.method}: only lora can leave the head as it is.")


@dataclass(frozen=True)
class LossSettings(Settings):
    """What a label counts in training."""

    class_weights: Literal["none", "balanced"] = "none"
    """Weights of the labels in training: balanced gives every class the same total weight; where an example may have
    several labels, to every label's presence that of its absence."""
    focal_gamma: float = 0.0
    """Focal loss: what the model is sure of counts by (1 - its probability) to this power; 2 is usual, 0 is off."""
    label_smoothing: float = 0.0
    """Share of every training target that is spread over all labels."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._at_least(0, "focal_gamma")
        self._share("label_smoothing")


@dataclass(frozen=True)
class TextSettings(Settings):
    """Texts: how long ones are cut, how they are changed."""

    max_length: int | None = None
    """Longest window in tokens; None: the model's limit, or what its tokenizer_config.json says (model_max_length), up
    to 8,192 for ModernBERT. Longer sentences are cut into overlapping windows."""
    long_text: Literal["head", "head_tail", "windows"] = "head"
    """Texts longer than max_length: keep the beginning, or half from each end; or cut them into windows, whose logits
    are averaged."""
    text_augment: Literal["none", "eda"] = "none"
    """Texts: random changes of the training texts: words swapped, deleted, or inserted a second time."""
    augment_share: float = 0.1
    """Share of a text's words that `text_augment` changes."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.augment_share < 1:
            raise ValueError(f"augment_share is a share, above 0 and below 1, but it is {self.augment_share}.")


@dataclass(frozen=True)
class ImageSettings(Settings):
    """Images: their size, and how they are changed."""

    image_size: int | None = None
    """Images: height and width in pixels; None: the checkpoint's. Position embeddings are interpolated to it."""
    augment: Literal["none", "flip", "crop"] = "none"
    """Images: random changes of the training images: a horizontal flip, or a crop and a flip."""


@dataclass(frozen=True)
class OutputSettings(Settings):
    """Where the run is kept, and whether it goes on."""

    output_dir: Path = Path("runs/run")
    """The run folder: config.json, inputs.json, metrics.jsonl, checkpoints/, and adapter/ (LoRA) or best/."""
    resume: str = ""
    """"auto" continues from the newest complete checkpoint in output_dir, if there is one; or a checkpoint's path."""
    overwrite: bool = False
    """Delete the run that output_dir holds, finished or not, and begin anew."""
    track: str = ""
    """Where figures go beside metrics.jsonl, several with commas: tensorboard, mlflow, wandb, trackio (extras of those
    names), or a class of your own as module:Class."""
    quiet: bool = False
    """Print the scores at the end alone; and warnings and errors."""
    dry_run: bool = False
    """Show the plan of the run and some examples as the model will see them, and stop: nothing is written."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.overwrite and self.resume:
            raise ValueError(f"overwrite deletes the run that resume ({self.resume}) would continue. Leave one out.")


GROUPS: dict[str, type[Settings]] = {
    "model": ModelSettings,
    "data": DataSettings,
    "LoRA": LoRASettings,
    "training": TrainConfig,
    "loss": LossSettings,
    "text": TextSettings,
    "image": ImageSettings,
    "output": OutputSettings,
}
"""By the title and in the order that the help shows."""


@dataclass(frozen=True)
class RunConfig(
    OutputSettings, ImageSettings, TextSettings, LossSettings, TrainConfig, LoRASettings, DataSettings, ModelSettings
):
    """A whole run: model, data, method and the training loop's choices."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("lora_plus_ratio", "head_rate_ratio"):
            if self.method != "lora" and getattr(self, name) not in (None, 1):
                raise ValueError(
                    f"{name} is {getattr(self, name)} with method {self.method}: it is for lora. Leave it out."
                )
        if self.init_lora_weights == "eva" and self.parallel == "fsdp":
            raise ValueError("init_lora_weights eva does not go with parallel fsdp: take ddp, or another start.")

    def to_dict(self) -> dict[str, Any]:
        """The fields as config.json holds them."""
        return {name: str(v) if isinstance(v, Path) else v for name, v in dataclasses.asdict(self).items()}

    def to_toml(self) -> str:
        """The fields as a file for --config, but for where the run is kept and whether it goes on.

        TOML has no null: fields that are None are left out, which is their default.
        """
        places = {field.name for field in dataclasses.fields(OutputSettings)}
        values = {name: value for name, value in self.to_dict().items() if name not in places and value is not None}
        return "".join(f"{name} = {_in_toml(value)}\n" for name, value in values.items())

    @classmethod
    def from_dict(cls: type["Config"], values: dict[str, Any], where: str) -> "Config":
        """Fields from a parsed TOML or JSON file.

        Raises:
            ValueError: a key is unknown (the message names the nearest known one), or a value has another type.
        """
        known = {f.name for f in dataclasses.fields(cls)}
        for name in values:
            if name not in known:
                near = meant(name, (setting.replace("_", "-") for setting in sorted(known)))
                suggestion = f" Did you mean {near.split()[0].replace('-', '_')!r}?" if near else ""
                raise ValueError(f"{where}: unknown setting {name!r}.{suggestion}")
        values = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
        if isinstance(values.get("output_dir"), str):
            values["output_dir"] = Path(values["output_dir"])
        try:
            return cls(**values)
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from error


def _in_toml(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(_in_toml, value))}]"
    if isinstance(value, (bool, str)):  # JSON writes them as TOML does
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return repr(value)


RESUME_MAY_CHANGE = (
    "output_dir",
    "resume",
    "overwrite",
    "score_test",
    "checkpoint_steps",
    "checkpoint_minutes",
    "keep_checkpoints",
    "micro_batch_size",
    "micro_batch_tokens",
    "gradient_checkpointing",
    "workers",
    "parallel",
    "timeout",
    "cache",
    "track",
    "quiet",
    "dry_run",
)
"""Settings that may differ between a run and its continuation without changing what is computed."""
