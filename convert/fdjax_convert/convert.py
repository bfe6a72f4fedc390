"""Turns published checkpoints into fdjax's own format, once, and keeps the result.

    FDJAX_CACHE_DIR/checkpoints/<file>-<architecture>-<key>/

The key stands for the file (path, size, time), the shapes that are filled and the
table of rules, so that a changed file or table is converted anew.
"""

import concurrent.futures
import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import logging
from flax import traverse_util

from fdjax import checkpoint as checkpoints
from fdjax.axes import Params
from fdjax.checkpoint import download, files
from fdjax.checkpoint import io as checkpoint_io
from fdjax.checkpoint.io import LazyArray
from fdjax.contract.component import ParametricComponent
from fdjax_convert import recognise
from fdjax_convert.formats import readers, writers
from fdjax_convert.formats.readers import Checkpoint
from fdjax_convert.formats.tensors import LazyTensor, contiguous
from fdjax_convert.methods import Candidate
from fdjax_convert.rules.problems import CheckpointError, ConversionError
from fdjax_convert.rules.rules import Conversion, Layout, export
from fdjax_convert.tables import layouts


def load_params(
    component: ParametricComponent, source: str, *, sharding: Any = None
) -> Params | None:
    """Parameters of a published checkpoint; the entry point of this package.

    Args:
        component: What has to be filled.
        source: A local path, an address or a Hugging Face name: `download.fetch`.
        sharding: See `fdjax.checkpoint.restore`.

    Returns:
        Params on the devices; None if the architecture is not known here.

    Raises:
        FileNotFoundError: The checkpoint cannot be found or fetched.
        ValueError: It cannot be read, or does not fit.
    """
    if not layouts.layouts(component.architecture):
        return None
    flag = f"checkpoint_path of {type(component.config).__name__}"
    path = download.fetch(source, flag=flag)
    if checkpoints.read_metadata(path) is not None:
        return checkpoints.restore(path, component=component, sharding=sharding)
    opened = recognise.find(path, component.architecture)
    layout, conversion = recognise.match(opened, component)
    directory = _cached(opened, component, layout)
    with checkpoint_io.file_lock(directory.with_name(directory.name + ".lock")):
        if not checkpoints.is_intact(directory):
            shutil.rmtree(directory, ignore_errors=True)
            logging.info("Converting %s to %s, this once.", opened.path, directory)
            write(opened, layout, conversion, directory, component)
    return checkpoints.restore(directory, component=component, sharding=sharding)


def convert(
    source: str,
    destination: Path,
    *,
    components: Sequence[Candidate],
    layout: str | None = None,
    dtype: Any = None,
    wrapper: str | None = None,
    overwrite: bool = False,
) -> checkpoints.Metadata:
    """Converts a published checkpoint to a directory of fdjax's own format.

    Args:
        source: A local path, an address or a Hugging Face name: `download.fetch`.
        destination: Directory to make.
        components: What may be filled; the first that fits is.
        layout: Name of the key layout; None detects it.
        dtype: Type to cast floating tensors to; None keeps what is stored.
        wrapper: Entry of a training checkpoint that holds the weights.
        overwrite: Replace what is there.

    Raises:
        FileNotFoundError: The checkpoint cannot be found or fetched.
        ValueError: It cannot be read, or fits no component: says what it is.
        OSError: The disk is full; nothing is kept.
    """
    path = download.fetch(source, flag="SOURCE")
    if checkpoints.read_metadata(path) is not None:
        raise ValueError(f"{path} is a checkpoint of fdjax already")
    kinds = {candidate.component.architecture for candidate in components}
    if len(kinds) == 1:
        opened = recognise.find(path, kinds.pop(), wrapper)
    else:
        opened = readers.open_checkpoint(path, wrapper)
    component = _choose(opened, components, layout)
    found, conversion = recognise.match(opened, component, layout=layout, dtype=dtype)
    return write(opened, found, conversion, destination, component, overwrite=overwrite)


def _choose(
    opened: Checkpoint, components: Sequence[Candidate], layout: str | None
) -> ParametricComponent:
    """The first component that a checkpoint fits; the only one is returned as it is."""
    if len(components) == 1:
        return components[0].component
    found = {one.architecture for one in layouts.detect(opened.tensors)}
    fitting = [one for one in components if one.component.architecture in found]
    kinds = {one.component.architecture: one.name for one in fitting}
    if len(kinds) > 1:
        names = " or ".join(f"--component={name}" for name in kinds.values())
        raise CheckpointError(
            f"{opened.path} is {recognise.what_is(opened)}: choose one of them with "
            f"{names}"
        )
    has: dict[str, str] = {}
    for one in fitting:
        try:
            recognise.match(opened, one.component, layout=layout)
        except ConversionError:
            table = layouts.layouts(one.component.architecture)[0]
            shapes = checkpoints.param_shapes(one.component)
            has.setdefault(recognise.describe_target(table, shapes), one.method)
            continue
        return one.component
    is_now = recognise.what_is(opened)
    for name, method in has.items():
        if is_now.startswith(name):  # the right size: say what is wrong with it
            [wrong] = [one for one in fitting if one.method == method]
            recognise.match(opened, wrong.component, layout=layout)
    known = ", ".join(f"{name} ({method})" for name, method in has.items())
    raise CheckpointError(
        f"{opened.path} is {is_now}; no installed method has such a component"
        + (f", they have {known}" if known else "")
    )


def write_torch(
    source: Path, destination: Path, *, layout: str | None = None, wrapped: bool = False
) -> tuple[int, str]:
    """Writes a checkpoint of fdjax in a published layout; the inverse of `convert`.

    Args:
        source: Directory or file of fdjax's own format.
        destination: File to write; its ending is the format: see `writers`.
        layout: Name of the key layout; None is that of the original.
        wrapped: Write the wrapper and the prefix of the original, too.

    Returns:
        Bytes of the tensors, and what was written in words.

    Raises:
        ValueError: The source is no checkpoint of fdjax, or has no such layout.
    """
    from tqdm import tqdm

    metadata, params = checkpoints.open_lazily(source)
    known = layouts.layouts(metadata.architecture)
    wanted = layout or metadata.source.get("layout")
    table = next((one for one in known if one.name == wanted), None)
    if table is None:
        names = ", ".join(one.name for one in known) or "none"
        raise ValueError(
            f"{source} holds {metadata.architecture or 'an unnamed architecture'}, "
            f"layout must be one of {names}; got {wanted!r}"
        )
    tensors = export(params, table.rules)
    size = sum(tensor.nbytes for tensor in tensors.values())
    checkpoint_io.check_free_space(destination.absolute(), size)
    with (
        tqdm(
            desc="to torch", total=size, unit="B", unit_scale=True, disable=None
        ) as bar,
        checkpoint_io.explain_full_disk(destination),
    ):
        writers.write_checkpoint(
            destination,
            tensors,
            wrapper=metadata.source.get("wrapper", ()) if wrapped else (),
            prefix=metadata.source.get("prefix", "") if wrapped else "",
            progress=bar.update,
        )
    return size, f"{recognise.describe(table, tensors)}, {table.name} layout"


def _cached(opened: Checkpoint, component: ParametricComponent, layout: Layout) -> Path:
    """Where the converted parameters are kept."""
    shapes = traverse_util.flatten_dict(checkpoints.param_shapes(component), sep="/")
    fields = component.weight_fields
    content = [
        [[str(file.resolve()), *_stamp(file)] for file in opened.files],
        component.architecture,
        sorted((path, list(leaf.shape)) for path, leaf in shapes.items()),
        [repr(_field(component.config, name)) for name in fields],
        repr(layout.rules),
    ]
    key = hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]
    stem = opened.path.name.partition(".")[0]
    name = f"{stem}-{component.architecture}-{key}"
    return files.cache_dir() / "checkpoints" / name


def _stamp(file: Path) -> tuple[int, int]:
    status = file.stat()
    return status.st_size, status.st_mtime_ns


def _field(config: Any, path: str) -> Any:
    for name in path.split("."):
        config = getattr(config, name)
    return config


def write(
    opened: Checkpoint,
    layout: Layout,
    conversion: Conversion,
    destination: Path,
    component: ParametricComponent,
    *,
    overwrite: bool = False,
) -> checkpoints.Metadata:
    """Writes a matched checkpoint as fdjax's own, tensor by tensor, with a bar.

    Returns:
        What was written; its `source` holds the sha256, layout, wrapper and prefix.

    Raises:
        ConversionError: A tensor holds NaNs, or an alias differs; nothing is kept.
        CheckpointError: A file does not have the checksum that its origin states.
        OSError: The disk is full; nothing is kept.
    """
    from tqdm import tqdm

    leaves = conversion.lazy_leaves()
    total = sum(leaf.nbytes for leaf in leaves.values())
    title = recognise.describe(layout, opened.tensors)
    with (
        concurrent.futures.ThreadPoolExecutor(1) as hashing,
        tqdm(desc=title, total=total, unit="B", unit_scale=True, disable=None) as bar,
    ):
        sums = hashing.submit(_checksums, opened.files)

        def source() -> Mapping[str, Any]:
            conversion.finish()
            return {
                "path": str(opened.path),
                "layout": layout.name,
                "description": title,
                "wrapper": list(opened.wrapper),
                "prefix": opened.prefix,
                **sums.result(),
            }

        return checkpoints.save(
            destination,
            traverse_util.unflatten_dict(
                {path: _with_progress(leaf, bar) for path, leaf in leaves.items()},
                sep="/",
            ),
            component=component,
            source=source,
            overwrite=overwrite,
        )


def _with_progress(leaf: LazyTensor, bar: Any) -> LazyArray:
    def release() -> None:
        leaf.release()
        bar.update(leaf.nbytes)

    return LazyArray(leaf.shape, leaf.dtype, lambda: contiguous(leaf.read()), release)


def _checksums(paths: tuple[Path, ...]) -> dict[str, Any]:
    """sha256 of the files; checked where their origin states it."""
    sums = {}
    for path in paths:
        found = sums[path.name] = download.sha256(path)
        stated = download.known_sha256(path)
        if stated is not None and stated != found:
            raise CheckpointError(
                f"{path} is corrupt: its sha256 must be {stated}, is {found}; delete "
                f"{path.resolve()} and fetch it again"
            )
    if len(sums) == 1:
        return {"sha256": next(iter(sums.values()))}
    joined = "".join(f"{value}  {name}\n" for name, value in sorted(sums.items()))
    return {"sha256": hashlib.sha256(joined.encode()).hexdigest(), "files": sums}


def report(metadata: checkpoints.Metadata, seconds: float) -> str:
    """One line about a conversion: what, how much, how fast."""
    size = metadata.num_bytes
    return (
        f"{metadata.source['description']}: {len(metadata.shapes)} tensors, "
        f"{metadata.num_parameters:,} parameters, {metadata.dtype}, "
        f"{size / 1e9:.2f} GB in {seconds:.1f} s ({size / 1e6 / seconds:.0f} MB/s)"
    )
