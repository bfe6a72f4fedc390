"""Published checkpoints: onto the devices, to fdjax's own format, and back."""

import concurrent.futures
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from flax import traverse_util

from fdjax import checkpoint as checkpoints
from fdjax.axes import Params
from fdjax.checkpoint import files, placement
from fdjax.checkpoint.errors import CheckpointError
from fdjax.checkpoint.fetch import check_sha256, fetch
from fdjax.checkpoint.placement import Placement
from fdjax.checkpoint.tensors import LazyTensor, contiguous
from fdjax.contract.component import ParametricComponent
from fdjax_convert import recognise
from fdjax_convert.formats import readers, writers
from fdjax_convert.formats.readers import Checkpoint
from fdjax_convert.methods import Candidate
from fdjax_convert.rules import placing
from fdjax_convert.rules.conversion import Conversion
from fdjax_convert.rules.export import export
from fdjax_convert.rules.problems import ConversionError
from fdjax_convert.rules.rules import Layout
from fdjax_convert.tables import layouts


def load_params(
    component: ParametricComponent,
    source: str,
    *,
    sharding: Placement = None,
    only_check: bool = False,
) -> Params | None:
    """Parameters of a published checkpoint; the entry point of this package.

    Tensor by tensor they are read, placed, turned and cast; nothing is written.

    Args:
        component: What has to be filled.
        source: An address: see `fdjax.checkpoint.address`.
        sharding: See `fdjax.checkpoint.load_params`.
        only_check: Read names and sizes alone.

    Returns:
        Params on the devices, in the dtypes of the component, or none of them if it is
        only to be checked; None if the architecture is not known here.

    Raises:
        FileNotFoundError: The checkpoint cannot be found or fetched.
        ValueError: It cannot be read, or does not fit.
    """
    if not layouts.layouts(component.architecture):
        return None
    flag = f"checkpoint_path of {type(component.config).__name__}"
    path = fetch(source, flag=flag)
    if checkpoints.read_metadata(path) is not None:
        return checkpoints.restore(path, component=component, sharding=sharding)
    shapes = checkpoints.param_shapes(component)
    shardings = placement.leaf_shardings(shapes, sharding)
    opened = recognise.find(path, component.architecture)
    layout, conversion = recognise.match(opened, component)
    if only_check:
        return {}
    recognise.tell_choice(opened)
    title = recognise.describe(layout, opened.tensors)
    try:
        with _progress_bar(title, conversion.source_bytes) as bar:
            return placing.place(conversion, shardings, bar.update)
    except ConversionError as error:
        told = f"{opened.path} cannot be used"
        raise ConversionError(error.problems, told) from None


def _progress_bar(title: str, num_bytes: int) -> Any:
    from tqdm import tqdm

    return tqdm(desc=title, total=num_bytes, unit="B", unit_scale=True, disable=None)


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
        source: An address: see `fdjax.checkpoint.address`.
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
    path = fetch(source, flag="SOURCE")
    if checkpoints.read_metadata(path) is not None:
        raise ValueError(f"{path} is a checkpoint of fdjax already")
    kinds = {candidate.component.architecture for candidate in components}
    if len(kinds) == 1:
        opened = recognise.find(path, kinds.pop(), wrapper)
    else:
        opened = readers.open_checkpoint(path, wrapper)
    component = _choose(opened, components, layout)
    opened = recognise.select(opened, component.architecture)
    recognise.tell_choice(opened)
    found, conversion = recognise.match(opened, component, layout=layout, dtype=dtype)
    return write(opened, found, conversion, destination, component, overwrite=overwrite)


def _choose(
    opened: Checkpoint, components: Sequence[Candidate], layout: str | None
) -> ParametricComponent:
    """The first component that a checkpoint fits; the only one is returned as it is."""
    if len(components) == 1:
        return components[0].component
    found = {p.layout.architecture for p in layouts.parts(opened.tensors)}
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
        part = recognise.select(opened, one.component.architecture)
        try:
            recognise.match(part, one.component, layout=layout)
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
            part = recognise.select(opened, wrong.component.architecture)
            recognise.match(part, wrong.component, layout=layout)
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
    files.check_free_space(destination.absolute(), size)
    with (
        _progress_bar("to torch", size) as bar,
        files.explain_full_disk(destination),
    ):
        writers.write_checkpoint(
            destination,
            tensors,
            wrapper=metadata.source.get("wrapper", ()) if wrapped else (),
            prefix=(wrapped and metadata.source.get("prefix")) or table.prefix,
            progress=bar.update,
        )
    return size, f"{recognise.describe(table, tensors)}, {table.name} layout"


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
    leaves = conversion.lazy_leaves()
    total = sum(leaf.nbytes for leaf in leaves.values())
    title = recognise.describe(layout, opened.tensors)
    with (
        concurrent.futures.ThreadPoolExecutor(1) as hashing,
        _progress_bar(title, total) as bar,
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


def _with_progress(leaf: LazyTensor, bar: Any) -> LazyTensor:
    def release() -> None:
        leaf.release()
        bar.update(leaf.nbytes)

    return LazyTensor(leaf.shape, leaf.dtype, lambda: contiguous(leaf.read()), release)


def _checksums(paths: tuple[Path, ...]) -> dict[str, Any]:
    """sha256 of the files; checked where their origin states it."""
    sums = {path.name: check_sha256(path) for path in paths}
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
