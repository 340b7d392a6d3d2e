"""How many devices stand along each mesh axis: LAYOUT, by name or by sizes.

  replicated              every device holds all weights; the batch is split
  fsdp                    weights are split over the devices that split the batch, and gathered
                          layer by layer (Rajbhandari et al. 2020, arXiv 1910.02054, stage 3)
  tensor                  heads, MLP units and vocabulary are split (Shoeybi et al. 2019, arXiv
                          1909.08053, section 3)
  tensor_sequence         besides, between layers the residual stream is split by position
                          (Korthikanti et al. 2022, arXiv 2205.05198, section 4.2.2)
  fsdp=4,tensor=2         both, with sizes; one of them may be left open: `fsdp,tensor=2`
  data=2,fsdp=2,tensor=2  copies of the weights besides; `data` is the same word as `replicated`

Slices that are joined by a data-centre network only share the axis `data`: what crosses it is the
gradient of a prompt, a few kilobytes. `fsdp` over two slices of 8 is `data=2,fsdp=8`.
"""

import dataclasses
import math
from collections.abc import Iterator

from prompt_tuning.errors import UserError, nearest
from prompt_tuning.interfaces import T5Config

# Word of LAYOUT -> (field, whether positions are split too).
_WORDS = {"replicated": ("data", False), "data": ("data", False), "fsdp": ("fsdp", False),
          "tensor": ("model", False), "tensor_sequence": ("model", True)}
AXES = ("data", "fsdp", "model")
_SHOWN = 6


@dataclasses.dataclass(frozen=True, kw_only=True)
class Layout:
  """Sizes of the mesh axes.

  Attributes:
    data: copies of the weights, each with its own rows.
    fsdp: devices that split both weights and rows.
    model: devices that split heads, MLP units and vocabulary.
    sequence: between layers, `model` splits positions.

  One size may be None: the devices that the others leave.
  """

  data: int | None = 1
  fsdp: int | None = 1
  model: int | None = 1
  sequence: bool = False

  def __post_init__(self):
    sizes = [getattr(self, name) for name in AXES]
    if any(size is not None and (not isinstance(size, int) or size < 1) for size in sizes):
      raise UserError("LAYOUT has a size that is none", found=str(self),
                      wanted="whole numbers, 1 or more", fix="--gin.LAYOUT=\"'fsdp=4,tensor=2'\"")
    if sizes.count(None) > 1:
      raise UserError("LAYOUT leaves two sizes open", found=str(self), wanted="at most one",
                      fix="give a size to all but one, as in 'fsdp,tensor=2'")

  def __str__(self) -> str:
    words = {"data": "data", "fsdp": "fsdp",
             "model": "tensor_sequence" if self.sequence else "tensor"}
    parts = [words[name] if size is None else f"{words[name]}={size}"
             for name in AXES if (size := getattr(self, name)) != 1]
    return ",".join(parts) or "data=1"

  def resolve(self, devices: int, slices: int = 1) -> "Layout":
    """The same, for so many devices, without an open size.

    Args:
      slices: groups of devices that only a data-centre network joins.

    Raises:
      UserError: the sizes do not make up the devices, or weights would be split over slices.
    """
    sizes = {name: getattr(self, name) for name in AXES}
    if slices > 1 and sizes["data"] == 1 and None in sizes.values():
      sizes["data"] = slices
    known = math.prod(size for size in sizes.values() if size is not None)
    for name, size in sizes.items():
      if size is None and devices % known == 0:
        sizes[name] = devices // known
    resolved = Layout(**sizes, sequence=self.sequence)
    if None in sizes.values() or math.prod(sizes.values()) != devices:
      raise UserError("LAYOUT does not fit the devices", found=f"{self} on {devices} devices",
                      wanted=f"sizes whose product is {devices}",
                      fix=_proposals(Layout(**{**sizes, "fsdp": None, "data": 1, "model": 1}),
                                     devices, slices, None, None))
    if sizes["data"] % slices:
      raise UserError("LAYOUT splits weights over a data-centre network",
                      found=f"{resolved} on {slices} slices of {devices // slices} devices",
                      wanted=f"a multiple of {slices} for data",
                      fix=_proposals(resolved, devices, slices, None, None))
    return resolved

  def check(self, config: T5Config, rows: int | None = None, pieces: int = 1,
            slices: int = 1) -> None:
    """Checks a resolved layout against a model and a batch.

    Args:
      rows: of a batch; None: not checked.
      pieces: microbatches.

    Raises:
      UserError: an axis of the model or the batch cannot be split so; it names layouts that work.
    """
    devices = self.data * self.fsdp * self.model
    problems = list(_problems(self, config, rows, pieces))
    if not problems:
      return
    only_rows = not list(_problems(self, config, None, pieces))
    unit = self.data * self.fsdp * pieces
    proposals = _proposals(self, devices, slices, config, rows, pieces)
    if only_rows and rows is not None:
      raise UserError("BATCH_SIZE cannot be split evenly",
                      found=f"BATCH_SIZE = {rows}, {devices} devices with LAYOUT {self}, "
                      f"{pieces} microbatches", wanted=f"a multiple of {unit}",
                      fix=f"--gin.BATCH_SIZE={-(-rows // unit) * unit}; or {proposals}")
    raise UserError("LAYOUT does not divide the model", found=f"{self}: " + "; ".join(problems),
                    wanted="sizes that divide heads, MLP units, vocabulary and width",
                    fix=proposals)


def layout_of(value: "str | Layout") -> Layout:
  """LAYOUT as gin gives it.

  Raises:
    UserError: the text is no layout.
  """
  if isinstance(value, Layout):
    return value
  if not isinstance(value, str) or not value.strip():
    raise _unknown(value, "")
  sizes: dict[str, int | None] = {}
  sequence = False
  for part in value.replace(" ", "").split(","):
    word, equals, size = part.partition("=")
    if word not in _WORDS or (equals and not size.isdigit()):
      raise _unknown(value, word)
    field, in_sequence = _WORDS[word]
    if field in sizes:
      raise UserError("LAYOUT names an axis twice", found=value, wanted="each once",
                      fix="leave one of them out")
    sizes[field] = int(size) if equals else None
    sequence |= in_sequence
  return Layout(**sizes, sequence=sequence)


def workable(devices: int, config: T5Config | None = None, rows: int | None = None,
             pieces: int = 1, slices: int = 1, sequence: bool = False) -> list[Layout]:
  """Every layout of so many devices that a model and a batch can be split by."""
  found = []
  for model in _divisors(devices):
    for fsdp in _divisors(devices // model):
      layout = Layout(data=devices // model // fsdp, fsdp=fsdp, model=model,
                      sequence=sequence and model > 1)
      if layout.data % slices == 0 and (
          config is None or not list(_problems(layout, config, rows, pieces))):
        found.append(layout)
  return found


def _problems(layout: Layout, config: T5Config, rows: int | None, pieces: int) -> Iterator[str]:
  for axis, name, size in (("model", "heads", config.num_heads),
                           ("model", "MLP units", config.mlp_dim),
                           ("model", "rows of the vocabulary", config.vocab_size),
                           ("fsdp", "embedding dimensions", config.emb_dim)):
    if size % getattr(layout, axis):
      yield f"{size} {name} over {getattr(layout, axis)} devices"
  if rows is not None and rows % (layout.data * layout.fsdp * pieces):
    yield f"{rows} rows over {layout.data * layout.fsdp} devices in {pieces} pieces"


def _proposals(near: Layout, devices: int, slices: int, config: T5Config | None,
               rows: int | None, pieces: int = 1) -> str:
  """Layouts that work, those first that split the weights as often as `near` does."""
  found = workable(devices, config, rows, pieces, slices, near.sequence)
  wanted = (near.fsdp or devices) * (near.model or 1)
  found.sort(key=lambda x: (abs(math.log2(x.fsdp * x.model / wanted)),
                            abs(math.log2(x.model / (near.model or 1)))))
  if not found:
    return f"no layout of {devices} devices works: change BATCH_SIZE or the number of devices"
  return "one of these works: " + ", ".join(f"'{layout}'" for layout in found[:_SHOWN])


def _divisors(number: int) -> list[int]:
  return [size for size in range(1, number + 1) if number % size == 0]


def _unknown(value: object, word: str) -> UserError:
  return UserError("LAYOUT is unknown", found=repr(value),
                   wanted="of " + ", ".join(_WORDS) + ", with sizes or without: 'fsdp=4,tensor=2'",
                   fix=nearest(word, _WORDS))
