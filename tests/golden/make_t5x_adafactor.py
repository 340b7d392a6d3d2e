"""Writes t5x_adafactor.npz: steps of T5X's own Adafactor, for tests/test_optimizers.py.

Made from T5X commit cc342d419ec3e3e9c4bf1df33c82330cafdc1e16 (google-research/t5x), files
`t5x/adafactor.py` and `t5x/optimizers.py` unchanged, in a folder on PYTHONPATH:

  PYTHONPATH=SOURCES python tests/golden/make_t5x_adafactor.py

What those two files import and Adafactor does not use was stubbed in that folder: `jestimator`
(the Amos optimizer), and `t5x/utils.py`, of which only `flatten_dict_string_keys` is needed:
`flax.traverse_util.flatten_dict(flax.core.unfreeze(x), sep="/")`.

The parameters and gradients are formulas, and only some rows of large leaves are stored. The test
runs this file for CASES and the formulas; only `main` needs T5X.
"""

import pathlib

import numpy as np

STEPS = 6
PROMPT = {"learning_rate": 0.3, "decay_rate": 0.8, "weight_decay_rate": 1e-5,
          "multiply_by_parameter_scale": False}
BACKBONE = {"decay_rate": 0.8, "weight_decay_rate": None, "multiply_by_parameter_scale": True}

# name: (T5X's settings, step of T5X's train state before the first update, {leaf: (shape, scale)})
CASES = {
    "prompt": (PROMPT, 0, {"prompt": ((5, 6), 0.5)}),
    "prompt_continued": (PROMPT, 1_100_000, {"prompt": ((5, 6), 0.5)}),
    "prompt_momentum": ({**PROMPT, "beta1": 0.9}, 0, {"prompt": ((5, 6), 0.5)}),
    "backbone": ({**BACKBONE, "learning_rate": 1e-3}, 0, {
        "kernel": ((128, 130), 0.05), "tall": ((140, 128), 1.0), "small": ((4, 6), 0.1),
        "scale": ((7,), 1.0), "tiny": ((3, 4), 1e-5)}),
    # T5X scans layers along axis 1.
    "scanned": ({**BACKBONE, "learning_rate": 1e-2}, 0, {"kernel": ((128, 2, 130), 0.05)}),
}


def parameter(shape, scale):
  """A float32 leaf with values up to `scale`; along axis 1 they grow, so that layers differ."""
  count = np.arange(np.prod(shape)).reshape(shape)
  growth = 1.0 + np.arange(shape[1])[:, None] if len(shape) == 3 else 1.0
  return (scale * growth * np.sin(1.3 * count + 0.7)).astype(np.float32)


def gradient(shape, step):
  """A float32 gradient of step `step`, its entries from 5e-5 to 1.5 in size."""
  count = np.arange(np.prod(shape)).reshape(shape)
  size = 10.0 ** (-4.0 * np.abs(np.sin(0.37 * count**1.1)))
  sign = np.where(np.sin(2.1 * count**1.2 + 1.9 * step) > 0, 1.0, -1.0)
  return (sign * size * (1.0 + 0.5 * np.sin(step + 3.0 * count))).astype(np.float32)


def stored(leaf):
  """What of a leaf the file holds: all, or every 64th row of a large one."""
  return leaf if leaf.size < 1000 else leaf[::64]


def main():
  from t5x import adafactor
  from t5x.optimizers import OptimizerState

  arrays = {}
  for case, (settings, first_step, leaves) in CASES.items():
    if case == "scanned":
      dims = adafactor.FactorDim
      settings = {**settings, "factor_map": adafactor.HParamMap(
          [("kernel", (dims.ROW, dims.BATCH, dims.COLUMN))])}
    optimizer = adafactor.Adafactor(**settings)
    params = {name: parameter(*leaf) for name, leaf in leaves.items()}
    state = optimizer.init_state(params)
    state = OptimizerState(state.step + first_step, state.param_states)
    for step in range(STEPS):
      gradients = {name: gradient(shape, step) for name, (shape, _) in leaves.items()}
      params, state = optimizer.apply_gradient(optimizer.hyper_params, params, state, gradients)
      for name, leaf in params.items():
        arrays[f"{case}/{name}/{step}"] = stored(np.asarray(leaf))
    for name, moments in state.param_states.items():
      for moment in ("v_row", "v_col", "v"):
        arrays[f"{case}/{name}/{moment}"] = np.asarray(getattr(moments, moment))
  np.savez_compressed(pathlib.Path(__file__).with_name("t5x_adafactor.npz"), **arrays)


if __name__ == "__main__":
  main()
