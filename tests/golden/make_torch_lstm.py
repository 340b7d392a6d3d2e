"""Writes torch_lstm.npz: P-tuning's prompt encoders in torch, for tests/prompts/test_ptuning.py.

  python tests/golden/make_torch_lstm.py

Made with torch 2.13.0 on a CPU. P 5, D 8, h 6. The file holds `input [P, D]`, and by encoder its
`state_dict` (torch's names and layouts) and its output:

  lstm/lstm.*     torch.nn.LSTM, two layers, both directions
  lstm/head.*     2h -> 2h, ReLU, 2h -> D behind it: the encoder of Liu et al. 2021's code and PEFT
  lstm/hidden     [P, 2h] what the LSTM gives;  lstm/output [P, D]
  mlp/*           D -> h, ReLU, h -> h, ReLU, h -> D: PEFT's other encoder;  mlp/output [P, D]
"""

import pathlib

import numpy as np
import torch
from torch import nn

LENGTH, WIDTH, HIDDEN = 5, 8, 6


def main():
  torch.manual_seed(0)
  x = torch.randn(LENGTH, WIDTH)
  lstm = nn.LSTM(WIDTH, HIDDEN, num_layers=2, bidirectional=True, batch_first=True)
  head = nn.Sequential(nn.Linear(2 * HIDDEN, 2 * HIDDEN), nn.ReLU(), nn.Linear(2 * HIDDEN, WIDTH))
  mlp = nn.Sequential(nn.Linear(WIDTH, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, HIDDEN), nn.ReLU(),
                      nn.Linear(HIDDEN, WIDTH))
  with torch.no_grad():
    hidden = lstm(x[None])[0][0]
    arrays = {"input": x, "lstm/hidden": hidden, "lstm/output": head(hidden),
              "mlp/output": mlp(x)}
  for prefix, module in (("lstm/lstm", lstm), ("lstm/head", head), ("mlp", mlp)):
    arrays |= {f"{prefix}.{name}": leaf for name, leaf in module.state_dict().items()}
  path = pathlib.Path(__file__).parent / "torch_lstm.npz"
  np.savez_compressed(path, **{name: leaf.numpy() for name, leaf in arrays.items()})
  print(path, path.stat().st_size, "bytes")


if __name__ == "__main__":
  main()
