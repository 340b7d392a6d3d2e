"""Installs `prompt_tuning`, its gin files and its tasks, and the `prompt-tuning` command."""

import pathlib

from setuptools import find_packages, setup

HERE = pathlib.Path(__file__).parent

# Lower bounds are the oldest releases the tests passed on, upper bounds the first untested ones.
REQUIRED = [
    "jax>=0.10.2,<0.13",
    "flax>=0.12.8,<0.13",
    "optax>=0.2.8,<0.3",
    "orbax-checkpoint>=0.12.8,<0.13",
    "grain>=0.2.18,<0.3",
    "seqio>=0.0.20,<0.1",
    "tensorflow>=2.21,<2.22",
    "tensorflow-text>=2.21,<2.22",
    "gin-config>=0.5,<0.6",
    "sentencepiece>=0.2.1,<0.3",
    "safetensors>=0.8,<0.9",
    "huggingface_hub>=2.4,<3",
    "tensorstore>=0.1.86,<0.2",
    "msgpack>=1.2.4,<2",
    "ml_dtypes>=0.6,<0.7",
    "tensorboardX>=2.6.4,<3",
    "matplotlib>=3.10,<4",
    "rich>=14,<16",
    "rouge-score>=0.1.2,<0.2",
    "nltk>=3.10,<4",
    "sacrebleu>=2.6,<3",
    "numpy>=2.0,<3",
    "scipy>=1.17,<2",
]
TEST = ["pytest>=9,<10", "pytest-xdist>=3.8,<4", "hypothesis>=6.155,<7", "ruff>=0.17,<0.18",
        "mypy>=1.18,<3"]
# What `make bench` compares with.
BENCH = ["torch==2.13.0", "transformers>=5.23,<6", "peft>=0.21.2,<0.22"]
HF = ["torch>=2.13,<3", "transformers>=5.23,<6"]

# What `seqio_cache_tasks` needs, in an environment of its own: Beam wants an older protobuf,
# pyarrow, pillow and python-dateutil than requirements.lock has, and sentencepiece 0.2.3 a newer
# protobuf than Beam allows. Beam's own extra for TFRecord files has no wheel, google-crc32c has.
CACHE = ["apache-beam>=2.77,<2.78", "google-crc32c>=1.5,<2", "sentencepiece>=0.2.1,<0.2.3"]

# T5X is on git only, and so are airio and jestimator, which it imports: requirements-t5x.txt names
# the commits that were tested. They stand there and not here, because what their own setup.py files
# ask for (unpinned git heads of flax, optax and seqio; grain==0.2.12) does not resolve with
# anything: they are installed without it, and this extra holds what they do need.
T5X = ["clu>=0.0.12,<0.1", "fiddle>=0.3,<0.4", "cached-property>=2,<3", "tensorboard>=2.20,<3",
       "jaxtyping>=0.3,<0.4"]

setup(
    name="prompt-tuning",
    version="0.1.0",
    description="Soft prompts for a frozen T5 in JAX and Flax",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11,<3.14",
    packages=[
        *find_packages(include=["prompt_tuning", "prompt_tuning.*"]),
        "prompt_tuning.tasks",
        "prompt_tuning.tasks.datasets",
        "prompt_tuning.gin_configs",
    ],
    package_dir={
        "prompt_tuning.tasks": "tasks",
        "prompt_tuning.tasks.datasets": "tasks/datasets",
        "prompt_tuning.gin_configs": "gin_configs",
    },
    package_data={
        "prompt_tuning": ["pretrained/*/*", "pretrained/*/*/*"],
        "prompt_tuning.gin_configs": ["*.gin", "*/*.gin", "*/*/*.gin"],
    },
    install_requires=REQUIRED,
    extras_require={
        "test": TEST,
        "hf": HF,
        "bench": BENCH,
        "t5x": T5X,
        "cache": CACHE,
        "huggingface": ["datasets>=5.2,<6"],
        "cuda12": ["jax[cuda12]>=0.10.2,<0.13"],
        "cuda13": ["jax[cuda13]>=0.10.2,<0.13"],
        "tpu": ["jax[tpu]>=0.10.2,<0.13"],
        "all": [*TEST, *HF, *T5X],
    },
    entry_points={"console_scripts": ["prompt-tuning=prompt_tuning.main:main"]},
    classifiers=[
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
    ],
)
