"""What a training run is told: model, data, optimizer, lengths, and which prompts."""

import dataclasses

from prompt_tuning import trees
from prompt_tuning.checkpoints.leaves import dtype_of
from prompt_tuning.distillation import Distillation
from prompt_tuning.errors import UserError
from prompt_tuning.evaluate import EvalSettings
from prompt_tuning.members import Member, Members
from prompt_tuning.optimizers import Optimizer
from prompt_tuning.run_config import ModelConfig, TaskConfig
from prompt_tuning.train_state import LossConfig

# Whole numbers, with the flag that sets each.
_COUNTS = {"train_steps": "TRAIN_STEPS=100", "batch_size": "BATCH_SIZE=100",
           "eval_period": "EVAL_PERIOD=100", "log_period": "LOG_PERIOD=100",
           "prefetch": "train.TrainConfig.prefetch=4",
           "patience": "PATIENCE=5, or None: never"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig:
  """One training run.

  Attributes:
    model, task, optimizer: what, on which data, how.
    model_dir: MODEL_DIR.
    trainable: TRAINABLE, path patterns of backbone parameters that are trained besides the prompt.
    train_steps: TRAIN_STEPS, of this run.
    batch_size: BATCH_SIZE, rows a step over all devices.
    eval_period: EVAL_PERIOD, steps between evaluations; each one also saves.
    log_period: LOG_PERIOD, steps between lines of metrics.csv.
    seed: RANDOM_SEED: of the data's order, and of all that has no seed of its own.
    loss: z-loss, label smoothing, and NUM_MICROBATCHES.
    prompt_seed: PROMPT_SEED, of where the prompt starts and of dropout; None: `seed`.
    members: several prompts in this one run; None: one.
    distillation: prompts that teach this run's; None: none.
    eval_settings: of the evaluations during training; None: none.
    best_metrics: BEST_METRICS, names of metrics whose mean on the validation rows chooses the best
      step and the best of several prompts; None: the accuracy, or the loss (`selection.py`).
    patience: PATIENCE, stop after so many evaluations without a better one; None: never.
    prefetch: batches prepared ahead.
    export_dtype: EXPORT_DTYPE, of the `backbone/` folder that a run which trains one leaves.
  """

  model: ModelConfig
  task: TaskConfig
  optimizer: Optimizer
  model_dir: str
  train_steps: int
  batch_size: int
  trainable: tuple[str, ...] = ()
  eval_period: int = 1000
  log_period: int = 20
  seed: int = 0
  loss: LossConfig = LossConfig()
  eval_settings: EvalSettings | None = EvalSettings()
  best_metrics: tuple[str, ...] | None = None
  patience: int | None = None
  prefetch: int = 4
  export_dtype: str = "float32"
  prompt_seed: int | None = None
  members: Members | None = None
  distillation: Distillation | None = None

  def __post_init__(self):
    for name, flag in _COUNTS.items():
      value = getattr(self, name)
      if value is None and name == "patience":
        continue
      if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise UserError(f"TrainConfig.{name} is not a count", found=repr(value),
                        wanted="a whole number, 1 or more", fix=f"--gin.{flag}")
    pieces = self.loss.num_microbatches
    if self.batch_size % pieces:
      raise UserError("BATCH_SIZE cannot be split into microbatches",
                      found=f"BATCH_SIZE = {self.batch_size}, NUM_MICROBATCHES = {pieces}",
                      wanted=f"a multiple of {pieces}",
                      fix=f"--gin.BATCH_SIZE={-(-self.batch_size // pieces) * pieces}, or a "
                      "NUM_MICROBATCHES that divides it")
    for name in ("patience", "best_metrics"):
      if getattr(self, name) is not None and self.eval_settings is None:
        raise UserError("Choosing a step needs evaluations", found=f"{name} without eval_settings",
                        wanted="both", fix=f"set eval_settings, or {name} = None")
    if self.best_metrics is not None:
      names = (self.best_metrics,) if isinstance(self.best_metrics, str) else self.best_metrics
      if not names:
        raise UserError("BEST_METRICS is empty", found=repr(self.best_metrics),
                        wanted="a metric's name, or several", fix="--gin.BEST_METRICS=None")
      object.__setattr__(self, "best_metrics", tuple(names))
    if self.task.pack and self.model.prompt is not None and self.model.prompt_in_front:
      raise UserError("Packed rows hold a prompt a segment, not one in front",
                      found="TaskConfig.pack = True and ModelConfig.prompt_in_front = True",
                      wanted="virtual tokens placed by their ids",
                      fix="--gin.run_config.ModelConfig.prompt_in_front=False")
    if self.task.pack and self.model.prompt is not None and self.model.prompt.reads_input:
      raise UserError("This method reads the input, and packed rows hold several",
                      found=f"TaskConfig.pack = True and {type(self.model.prompt).__name__}",
                      wanted="an input a row", fix="leave run_config.TaskConfig.pack out")
    dtype_of(self.export_dtype, "--gin.EXPORT_DTYPE")
    object.__setattr__(self, "trainable", trees.patterns_of(self.trainable))
    if self.members is not None and self.members.is_one:
      object.__setattr__(self, "members", None)
    if self.members is not None:
      self._check_members(self.members)
    if self.members is not None and self.distillation is not None:
      raise UserError("Several prompts at once cannot be taught by others",
                      found=f"{len(self.prompts())} prompts and a distillation",
                      wanted="one of the two", fix="leave out N_PROMPTS and the like")

  @property
  def start_seed(self) -> int:
    """Of where the prompt starts and of dropout; the first one where there are several."""
    return self.seed if self.prompt_seed is None else self.prompt_seed

  def prompts(self) -> tuple[Member, ...]:
    """What is particular to each of several prompts; () where there is one."""
    if self.members is None:
      return ()
    return self.members.resolve(self.start_seed, self.optimizer.schedule.rate)

  def _check_members(self, members: Members) -> None:
    count = len(self.prompts())
    if self.trainable:
      raise UserError("A backbone that several prompts share cannot be trained",
                      found=f"{count} prompts and TRAINABLE = {self.trainable}",
                      wanted="one of the two", fix="set TRAINABLE = (), or leave out N_PROMPTS, "
                      "PROMPT_SEEDS, LEARNING_RATES and PROMPT_INITS")
    if self.model.prompt is None:
      raise UserError("Several prompts were asked for, but the model takes none",
                      found=f"{count} prompts", wanted="a prompt method",
                      fix="add --gin_file=prompts/soft.gin")
    if self.eval_settings is None:
      raise UserError("Several prompts need evaluations", found="eval_settings = None",
                      wanted="a metric that says which prompt is the best",
                      fix="set train.TrainConfig.eval_settings = @evaluate.EvalSettings()")
    if members.initializers and not hasattr(self.model.prompt, "initializer"):
      raise UserError("This method has no initialiser to choose",
                      found=f"PROMPT_INITS for {type(self.model.prompt).__name__}",
                      wanted="a method with one, such as prompts/soft.gin",
                      fix="leave PROMPT_INITS out, and vary PROMPT_SEEDS")
