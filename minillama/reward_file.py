"""A reward model from a file of preferences: read, split, train, judge, write.

`prepare` reads the file and the base model and refuses what cannot work; `train` goes
through the file `epochs` times; `fit` does both, judges the model on comparisons that
it has not seen and writes a folder that transformers' LlamaForSequenceClassification
loads, with the tokenizer and report.json. A process that is killed leaves a checkpoint
there, and the same call goes on from it to the same weights, bit for bit.
`fit_together` does the same on several processes, up to rounding.

Which comparisons are held out depends on the prompt and the seed alone: all
comparisons of a prompt are on one side, and stay there when the file grows.

In memory are the ids of the training pairs, 4 bytes each, and the texts of the pairs
held out, in every process. Bit for bit is what tests hold on the CPU. Left out:
adapters, a language-modelling or a centring term, batches that keep the comparisons of
a prompt together, bfloat16 on several processes.
"""

import hashlib
import json
import math
import shutil
from array import array
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path

import torch
from filelock import FileLock, Timeout
from tqdm import tqdm

from minillama.accumulate import accumulated_loss, follow, working_copy
from minillama.any_reward_model import judge_pairs, load_judge, read_pairs
from minillama.chat_format import ChatFormat, chat_format, load_chat_format, with_pairs
from minillama.checkpoint import (
    OtherRun,
    load_checkpoint,
    load_sharded,
    require_same,
    save_checkpoint,
    save_sharded,
)
from minillama.contracts import expects
from minillama.data import endless_batches
from minillama.distributed import pair_step, require_agreement, spread, whole
from minillama.hf import load_llama, save_reward_model
from minillama.hf_files import INDEX, SINGLE, read_json
from minillama.model import Llama
from minillama.optim import Stepper, warmup_cosine
from minillama.preference_audit import table
from minillama.preference_file import StrictTally, Tally, read_preferences
from minillama.preference_loss import MARGINS, pair_loss, pair_scores
from minillama.reward_model import RewardModel
from minillama.stages import Settings as CourseSettings
from minillama.stages import model_config
from minillama.store import digest, say, sources_of
from minillama.tokenizer import train_tokenizer

TOKENIZER_PAIRS = 10_000  # a new tokenizer learns from so many pairs at most
PIECE = 1000  # SentencePiece passes over texts of more than 4,192 bytes
FRESH_LR, BASE_LR = 1e-3, 1e-5  # of a new small model, of one that was pretrained
CHECKPOINT, REPORT = "checkpoint.safetensors", "report.json"
SHARDED = "checkpoint"  # A folder, of a training on several processes.
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@expects(
    "data: Path",
    "base: Path or None",
    "out: Path",
    "epochs, batch_size, micro_batch_size, save_every: int >= 1",
    "lr: finite number >= 0 or None",
    "max_tokens: int >= 2",
    "vocab_size: int >= 263",
    "held_out: number in [0, 1)",
    "strength, margin: text or None",
    "skip_bad_lines: flag",
    'dtype: "fp32" or "bf16"',
    "device: text",
    "seed: int",
)
@dataclass(frozen=True)
class FileSettings:
    """One training on a file."""

    data: Path  # JSON lines, plain or gzip, see preference_file.py.
    base: Path | None  # A Hugging Face LLaMA folder; None: a new small model.
    out: Path  # The folder that is written.
    epochs: int = 1  # The training goes through the file so often.
    batch_size: int = 16  # Each step sees so many comparisons.
    micro_batch_size: int = 16  # So many of them are in memory at a time.
    lr: float | None = None  # The peak; None: FRESH_LR, with a base BASE_LR.
    max_tokens: int = 1024  # Longer dialogues are cut, to what the base reads at most.
    vocab_size: int = 4096  # A new tokenizer has so many pieces at most.
    held_out: float = 0.1  # About this share of the prompts is kept for judging.
    strength: str | None = None  # A column 0 to 3; its margins are MARGINS["small"].
    margin: str | None = None  # A column of margins, in units of score.
    skip_bad_lines: bool = False  # Count and skip bad lines; else refuse the first.
    dtype: str = "fp32"  # What the model computes in; its weights stay float32.
    device: str = "cpu"  # Where it computes.
    seed: int = 0  # Decides the split, the new weights and the order.
    save_every: int = 50  # A checkpoint is written after so many steps.


@expects("settings: FileSettings")
def peak_lr(settings):
    """Return the learning rate at its peak."""
    if settings.lr is not None:
        return settings.lr
    return FRESH_LR if settings.base is None else BASE_LR


@dataclass(frozen=True)
class Prepared:
    """What a training starts from."""

    model: RewardModel  # Not trained yet, float32, on its device.
    chat: ChatFormat  # How dialogues become ids.
    max_tokens: int  # Longer ones are cut to so many.
    pairs: list  # The `PairExample`s to train on.
    held_out: list  # The `Comparison`s to judge on.
    tally: Tally  # What was read and skipped.
    identity: dict  # What decides the result, as JSON values.


# --------------------------------------------------------------------------------------
# Reading


@expects("prompt: list", "share: number in [0, 1]", "seed: int")
def is_held_out(prompt, share, seed):
    """Say whether a prompt's comparisons are held out; about a share of prompts is.

    It follows from a hash of the prompt's turns and the seed, whatever else there is.
    """
    hashed = hashlib.sha256(f"{seed} {json.dumps(prompt)}".encode()).digest()
    return int.from_bytes(hashed[:8], "big") < share * 2**64


def _tally(settings):
    """What counts faults, or raises them, as the settings say."""
    return Tally() if settings.skip_bad_lines else StrictTally()


def _comparisons(settings, tally):
    """The comparisons of a settings' file."""
    return read_preferences(settings.data, settings.strength, settings.margin, tally)


def _training_texts(settings):
    """The texts of the first training comparisons, in pieces that a tokenizer takes."""
    training = (
        comparison
        for comparison in _comparisons(settings, _tally(settings))
        if not is_held_out(comparison.prompt, settings.held_out, settings.seed)
    )
    for comparison in islice(training, TOKENIZER_PAIRS):
        said = [text for _, text in comparison.prompt]
        for text in [*said, comparison.chosen, comparison.rejected]:
            for start in range(0, len(text), PIECE):
                yield f" {text[start : start + PIECE]}"


def _new_base(settings, generator):
    """A small `Llama` of the course's sizes, with a tokenizer learned for it."""
    texts = list(_training_texts(settings))
    if not texts:
        raise ValueError(
            f"prepare: data must hold comparisons to train on, got {settings.data} "
            f"without, {settings.held_out} of its prompts held out"
        )
    learned = train_tokenizer(texts, settings.vocab_size)
    sizes = replace(CourseSettings(), max_seq_len=settings.max_tokens)
    return Llama(model_config(sizes, learned), generator), chat_format(learned)


def _read_base(folder, device):
    """A pretrained `Llama` in float32, and the format of its tokenizer."""
    chat = load_chat_format(folder)
    llama = load_llama(folder, dtype=torch.float32, device=device)
    if chat.tokenizer.vocab_size > llama.config.vocab_size:
        raise ValueError(
            f"prepare: {folder} must have a tokenizer of at most vocab_size = "
            f"{llama.config.vocab_size} pieces, got {chat.tokenizer.vocab_size}"
        )
    return llama, chat


def _split_pairs(settings, chat, max_tokens, tally, desc):
    """The pairs to train on, compactly, and the comparisons held out."""
    encoders = chat.encode_prompt, chat.encode_response
    comparisons, margins = _comparisons(settings, tally), MARGINS["small"]
    training, held_out = [], []
    encoded = with_pairs(comparisons, *encoders, max_tokens, tally, margins)
    for comparison, pair in tqdm(encoded, desc, disable=desc is None, unit=" pairs"):
        if is_held_out(comparison.prompt, settings.held_out, settings.seed):
            held_out.append(comparison)
        else:
            sides = array("i", pair.chosen), array("i", pair.rejected)
            training.append(replace(pair, chosen=sides[0], rejected=sides[1]))
    return training, held_out


def _identity(settings, model, chat):
    """What decides the result: settings, contents of files, code and machine."""
    with settings.data.open("rb") as file:
        data = hashlib.file_digest(file, "sha256").hexdigest()
    elsewhere = ("data", "base", "out", "save_every", "device", "skip_bad_lines")
    code = json.dumps(sources_of([prepare, train, train_together])).encode()
    on_gpu = settings.device != "cpu"
    return {
        "data": data,
        "initial_weights": digest(model.state_dict()),
        "tokenizer": hashlib.sha256(chat.tokenizer.model_bytes).hexdigest(),
        **{k: v for k, v in asdict(settings).items() if k not in elsewhere},
        "lr": peak_lr(settings),
        "code": hashlib.sha256(code).hexdigest(),
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name() if on_gpu else "cpu",
        "threads": torch.get_num_threads(),
    }


@expects("settings: FileSettings", "desc: text or None")
def prepare(settings, desc=None):
    """Read file and base model: a `Prepared`.

    desc names the progress bar; None shows none. Raises `Fault` for the first bad line
    unless they are skipped, ValueError for a base model that does not fit or fewer
    training pairs than a batch, OSError for a file that is not there.
    """
    generator = torch.Generator().manual_seed(settings.seed)
    if settings.base is None:
        llama, chat = _new_base(settings, generator)
    else:
        llama, chat = _read_base(settings.base, settings.device)
    max_tokens = min(settings.max_tokens, llama.config.max_seq_len)
    tally = _tally(settings)
    pairs, held_out = _split_pairs(settings, chat, max_tokens, tally, desc)
    if len(pairs) < settings.batch_size:
        raise ValueError(
            f"prepare: data must hold at least batch_size = {settings.batch_size} "
            f"comparisons to train on, got {len(pairs)} and {len(held_out)} held out"
        )
    model = RewardModel(llama, generator=generator).to(settings.device)
    identity = _identity(settings, model, chat)
    return Prepared(model, chat, max_tokens, pairs, held_out, tally, identity)


# --------------------------------------------------------------------------------------
# Training


def _part_losses(stepper, working, pairs, size, batch):
    """The losses of a batch's parts, each the mean over its pairs times its share."""
    for start in range(0, len(pairs), size):
        part = pairs[start : start + size]
        scores = pair_scores(working, part)  # chosen and rejected, (B,) each
        stepper.require_finite("scores", torch.cat(scores), batch)
        yield pair_loss(*scores, part) * (len(part) / len(pairs))


def _step(stepper, working, pairs, size, batch):
    """Descend once on a batch of pairs, in parts of a size; return its loss."""
    losses = _part_losses(stepper, working, pairs, size, batch)
    loss = accumulated_loss(losses, list(working.parameters()), stepper.parameters)
    stepper.step(loss, batch)
    follow(working, stepper.model)
    return loss.item()


def _steps(prepared, settings):
    """How many steps a training takes."""
    return settings.epochs * (len(prepared.pairs) // settings.batch_size)


def _stepper(model, settings, steps):
    """The optimiser of a training of so many steps, a twentieth of them warm-up."""
    warmup = math.ceil(steps / 20)
    schedule = partial(warmup_cosine, total_steps=steps, warmup_steps=warmup)
    return Stepper(model, peak_lr(settings), schedule)


def _refuse(path, whose):
    """Refuse a checkpoint that cannot be gone on from here."""
    if path.exists():
        raise OtherRun(
            f"train: out must be new or of the same run, got {path} of a training "
            f"{whose}; go on as there, name another folder, or delete this one"
        )


def _go_on(prepared, settings, losses, step, save, desc, tells=True):
    """Take the steps that are left, saving now and then; add to losses, and return it.

    step(pairs, their indices) -> loss; save(losses).
    """
    steps, done = _steps(prepared, settings), len(losses)
    order = torch.Generator().manual_seed(settings.seed)
    batches = endless_batches(len(prepared.pairs), settings.batch_size, order)
    if done and tells:
        say(f"going on after step {done:,} of {steps:,}")
    with tqdm(total=steps, initial=done, desc=desc, disable=desc is None) as bar:
        for batch in islice(batches, done, steps):
            losses.append(step([prepared.pairs[i] for i in batch], batch))
            bar.update()
            if len(losses) % settings.save_every == 0 or len(losses) == steps:
                save(losses)
                if desc is None and tells:
                    say(f"step {len(losses):,} of {steps:,}, loss {losses[-1]:.3f}")
    return losses


@expects(
    "prepared: Prepared", "settings: FileSettings", "desc: text or None", "-> list"
)
def train(prepared, settings, desc=None):
    """Train a prepared model in place; return the loss of every step, nats per pair.

    Goes on from the checkpoint in the folder, if there is one, and leaves one of the
    last step. desc names the progress bar; None shows a line at each checkpoint. Raises
    `OtherRun` for the checkpoint of another run, and `TrainingDiverged`.
    """
    model, identity = prepared.model, prepared.identity
    _refuse(settings.out / SHARDED, "on several processes")
    stepper = _stepper(model, settings, _steps(prepared, settings))
    path, size = settings.out / CHECKPOINT, settings.micro_batch_size
    losses = load_checkpoint(path, stepper, identity)
    working = working_copy(model, DTYPES[settings.dtype])
    follow(working, model)
    model.train()
    working.train()

    def step(pairs, batch):
        return _step(stepper, working, pairs, size, batch)

    def save(losses):
        save_checkpoint(path, stepper, losses, identity)

    losses = _go_on(prepared, settings, losses, step, save, desc)
    model.eval()
    return losses


@expects(
    "prepared: Prepared",
    "settings: FileSettings",
    "processes: Processes",
    'engine: "ddp" or "fsdp"',
    "desc: text or None",
    "-> list",
    "-> Module",
)
def train_together(prepared, settings, processes, engine="ddp", desc=None):
    """Train as `train` does, on several processes; return losses and the spread model.

    micro_batch_size is that of each process. How many processes there are, and their
    engine, may change from one checkpoint to the next. desc: None on all but the first.
    """
    if settings.dtype != "fp32":
        raise ValueError(
            "train_together: settings.dtype must be fp32 on several processes, got "
            f"{settings.dtype}"
        )
    model, identity = prepared.model.train(), prepared.identity
    _refuse(settings.out / CHECKPOINT, "in one process")
    spread_model = spread(model, pair_scores, engine, processes)
    stepper = _stepper(spread_model, settings, _steps(prepared, settings))
    folder, steppers = settings.out / SHARDED, {"reward_model": stepper}
    losses = load_sharded(folder, steppers, identity)

    def step(pairs, batch):
        return pair_step(stepper, pairs, settings.micro_batch_size, processes, batch)

    def save(losses):
        save_sharded(folder, steppers, losses, identity)

    tells = processes.rank == 0
    losses = _go_on(prepared, settings, losses, step, save, desc, tells)
    model.eval()
    return losses, spread_model


# --------------------------------------------------------------------------------------
# The whole


def _data_report(prepared):
    """What was read, skipped and split, as JSON values."""
    return {
        **prepared.tally.report(),
        "trained_on": len(prepared.pairs),
        "held_out": len(prepared.held_out),
        "max_tokens": prepared.max_tokens,
    }


@expects("report: dict")
def report_table(report):
    """Return a report as text, to be printed."""
    data, losses = report["data"], report["losses"]
    last = losses[-max(1, len(losses) // 10) :]
    lines = [
        *data["in_words"],
        f"{data['trained_on']:,} trained on, {data['held_out']:,} held out",
        f"{len(losses):,} steps; loss {losses[0]:.3f} in the first, "
        f"{sum(last) / len(last):.3f} in the last tenth, nats a comparison",
        "on comparisons held out:",
        table(report["held_out"]),
    ]
    return "\n".join(lines)


@expects("folder: Path")
def require_own_folder(folder):
    """Refuse a folder with a model in it that no training on a file has written."""
    files = {path.name for path in folder.glob("*")}
    ours = {CHECKPOINT, SHARDED, REPORT}
    if files & {"config.json", SINGLE, INDEX} and not files & ours:
        raise OtherRun(
            "require_own_folder: out must be a new folder or that of the same run, got "
            f"{folder}, which holds another model"
        )


@contextmanager
def locked(folder):
    """Make a folder, and hold it against other processes that would train into it.

    Raises `OtherRun` where one does. A process that dies loses its hold.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise OtherRun(
            f"locked: out must be used by one process at a time, got {folder}, into "
            "which another one trains"
        ) from None
    try:
        yield
    finally:
        lock.release()


@expects("folder: Path", "identity: dict")
def finished_report(folder, identity):
    """Return the report of a finished run of this identity, None if there is none.

    Raises `OtherRun` for a report of another one.
    """
    path = folder / REPORT
    if not path.exists():
        return None
    report = read_json(path, "finished_report")
    require_same("finished_report", path, report.get("identity", {}), identity)
    return report


def _write(prepared, settings, losses):
    """Write the folder of a trained model, judge it as written; return the report."""
    save_reward_model(prepared.model, settings.out, prepared.chat.special_ids)
    path = settings.out / "tokenizer.model"
    path.write_bytes(prepared.chat.tokenizer.model_bytes)
    judge = load_judge(settings.out, settings.device)
    judge = replace(judge, max_tokens=prepared.max_tokens)
    report = {
        "identity": prepared.identity,
        "data": _data_report(prepared),
        "losses": losses,
        "held_out": judge_pairs(judge, read_pairs(judge, prepared.held_out)),
    }
    unfinished = settings.out / "report.unfinished"
    unfinished.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    unfinished.replace(settings.out / REPORT)
    return report


@expects("prepared: Prepared", "settings: FileSettings", "desc: text or None")
def fit(prepared, settings, desc=None):
    """Train a prepared model, write its folder, and return its report: a dict.

    `identity`, `data` (what was read and skipped), `losses` (nats per pair, one a step)
    and `held_out` (`judge_pairs` of the model as it was written). A run that has
    been finished returns its report again.
    """
    report = finished_report(settings.out, prepared.identity)
    if report is None:
        report = _write(prepared, settings, train(prepared, settings, desc))
    (settings.out / CHECKPOINT).unlink(missing_ok=True)
    return report


@expects(
    "prepared: Prepared",
    "settings: FileSettings",
    "processes: Processes",
    'engine: "ddp" or "fsdp"',
    "desc: text or None",
)
def fit_together(prepared, settings, processes, engine="ddp", desc=None):
    """Do what `fit` does, on several processes; the first one writes.

    Each gets the report of a run that has been finished before; of a new one the first
    gets it, the others None as soon as the training is over. The result is that of one
    process up to rounding, whatever the number of threads, so that these do not count.
    """
    together = replace(prepared, identity=prepared.identity | {"threads": "any"})
    require_agreement(together.identity, processes)
    report = finished_report(settings.out, together.identity)
    if report is None:
        losses, model = train_together(together, settings, processes, engine, desc)
        with whole(model):
            if processes.rank == 0:
                report = _write(together, settings, losses)
    if processes.rank == 0 and (settings.out / SHARDED).exists():
        shutil.rmtree(settings.out / SHARDED)
    return report
