"""The files of a checkpoint: what stands where, and the tensors, mapped into memory.

A folder holds model.safetensors, or several such files and an index that says which
tensor stands in which. Names, shapes and dtypes are read from the files' headers, so
that what does not fit is refused before any weight is read.

A tensor that needs no other dtype or device is a view of its file, mapped into memory:
pages are read when they are first used, there is no second copy, and what training
changes is private to the process. Others are converted one at a time.

Left out: pickled weights, which could run any code.
"""

import json
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
TABLES = "rotary_emb.inv_freq"  # old checkpoints hold what follows from the config
DTYPES = {  # as a safetensors file says it -> as PyTorch does
    "F64": torch.float64,
    "F32": torch.float32,
    "BF16": torch.bfloat16,
    "F16": torch.float16,
}


def few(faults):
    """Faults in one line, the first eight by name: a model has hundreds of tensors."""
    more = [f"and {len(faults) - 8} more"] if len(faults) > 8 else []
    return "; ".join(faults[:8] + more)


def read_json(path, caller):
    """The dict of a JSON file; ValueError, in the name of a caller, for other text."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # of the encoding, too
        raise ValueError(f"{caller}: {path} must be JSON, got {error}") from error
    if not isinstance(found, dict):
        raise ValueError(f"{caller}: {path} must be a JSON object, got {found!r:.40}")
    return found


# --------------------------------------------------------------------------------------
# What stands where


def _open(path, caller):
    """A safetensors file, its header read and the rest mapped."""
    try:
        return safe_open(path, "pt")
    except SafetensorError as error:
        raise ValueError(
            f"{caller}: {path} must be a whole safetensors file, got {error}"
        ) from error


def _header(path, caller):
    """Name -> (path, shape, dtype as the file says it) of each tensor of a file."""
    with _open(path, caller) as file:
        slices = {name: file.get_slice(name) for name in file.keys()}
        return {
            name: (path, tuple(part.get_shape()), part.get_dtype())
            for name, part in slices.items()
            if not name.endswith(TABLES)
        }


def _index(path, caller):
    """The pairs (name of a tensor, name of its file) that an index lists."""
    weight_map = read_json(path, caller).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ValueError(f"{caller}: {path} must have a weight_map, got {weight_map!r}")
    for file in weight_map.values():
        if not isinstance(file, str) or Path(file).name != file:
            raise ValueError(
                f"{caller}: {path} must name files of its own folder, got {file!r}"
            )
    return {pair for pair in weight_map.items() if not pair[0].endswith(TABLES)}


def _sharded(folder, caller):
    """As `headers`, of several files, which must hold exactly what the index says."""
    said = _index(folder / INDEX, caller)
    files = sorted({file for _, file in said})
    found = {file: _header(folder / file, caller) for file in files}
    held = {(name, file) for file in files for name in found[file]}
    faults = [f"no {name} in {file}" for name, file in sorted(said - held)]
    faults += [f"{name} in {file}, too" for name, file in sorted(held - said)]
    if faults:
        raise ValueError(
            f"{caller}: the files must hold what {INDEX} says, got {few(faults)}"
        )
    return {name: where for file in files for name, where in found[file].items()}


def headers(folder, caller):
    """Name -> (path, shape, dtype as the file says it) of a checkpoint's tensors."""
    there = [name for name in (SINGLE, INDEX) if (folder / name).exists()]
    if not there:
        raise FileNotFoundError(
            f"{caller}: {folder} must hold {SINGLE} or {INDEX}, got neither "
            "(pickled weights, as in pytorch_model.bin, are not read)"
        )
    if len(there) == 2:
        raise ValueError(
            f"{caller}: {folder} must hold {SINGLE} or {INDEX}, got both, and they may "
            "be of different models"
        )
    if there == [INDEX]:
        return _sharded(folder, caller)
    return _header(folder / SINGLE, caller)


def check_tensors(expected, found, caller):
    """Hold names, shapes and dtypes in the headers of files against a model's.

    expected: Hugging Face's name -> shape; found: as from `headers`.
    """
    faults = [f"missing {name}" for name in expected if name not in found]
    faults += [f"unexpected {name}" for name in found if name not in expected]
    faults += [
        f"{name} is {found[name][1]}, expected {shape}"
        for name, shape in expected.items()
        if name in found and found[name][1] != shape
    ]
    faults += [
        f"{name} is {dtype}, expected {', '.join(DTYPES)}"
        for name, (_, _, dtype) in found.items()
        if dtype not in DTYPES
    ]
    if faults:
        raise ValueError(
            f"{caller}: the tensors must be those of the config, got {few(faults)}"
        )


def one_dtype(found, dtype, caller):
    """The dtype to load: the one asked for, or the only one there is."""
    if dtype not in (None, *DTYPES.values()):
        raise ValueError(f"{caller}: dtype must be of weights or None, got {dtype}")
    dtypes = sorted({str(DTYPES[word]) for _, _, word in found.values()})
    if dtype is None and len(dtypes) > 1:
        raise ValueError(
            f"{caller}: dtype must be given where a checkpoint mixes several, got "
            f"None for {', '.join(dtypes)}"
        )
    return dtype or DTYPES[next(iter(found.values()))[2]]


def mapped(path, names, caller):
    """Tensors of a file by name; no page is read before it is used."""
    with _open(path, caller) as file:
        return {name: file.get_tensor(name) for name in names}


def read_tensors(found, dtypes, device, caller):
    """Read all tensors: name -> tensor of the dtype that `dtypes` has for it.

    What must be converted is mapped alone, so that its pages are let go at once.
    """
    stays, tensors = torch.device(device or "cpu").type == "cpu", {}
    for path in dict.fromkeys(path for path, _, _ in found.values()):
        names = [name for name, where in found.items() if where[0] == path]
        kept = [x for x in names if stays and DTYPES[found[x][2]] == dtypes[x]]
        tensors |= mapped(path, kept, caller)
        for name in (name for name in names if name not in kept):
            alone = mapped(path, [name], caller)[name]
            tensors[name] = alone.to(device=device, dtype=dtypes[name])
    return tensors
