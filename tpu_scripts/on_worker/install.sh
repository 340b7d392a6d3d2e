#!/usr/bin/env bash
# On a worker: an environment with this package in ~/prompt_tuning/.venv, and the bucket mounted.
#
#   install.sh PYTHON BUCKET
#
# The images have Python 3.10, which is too old: uv brings its own.
set -euo pipefail
case "${1:-}" in -h | --help) sed -n '2,6s/^# \{0,1\}//p' "$0"; exit 0 ;; esac
python=$1 bucket=${2:-}
cd "$HOME/prompt_tuning"
export PATH=$HOME/.local/bin:$PATH

if [[ -n $bucket ]]; then
  command -v gcsfuse > /dev/null || sudo apt-get install -y -qq gcsfuse || {
    echo "$(hostname): gcsfuse is neither installed nor known to apt; how to install it:" \
      "https://cloud.google.com/storage/docs/cloud-storage-fuse/install" >&2
    exit 1
  }
  mkdir -p "$HOME/bucket"
  # A checkpoint appears by renaming its folder. Hosts must see each other's files at once, so
  # neither names nor attributes are cached.
  mountpoint -q "$HOME/bucket" || gcsfuse --implicit-dirs --rename-dir-limit 100000 \
    --metadata-cache-ttl-secs 0 "$bucket" "$HOME/bucket"
fi

command -v uv > /dev/null || pip3 install --user --quiet uv
[[ -x .venv/bin/python ]] || uv venv --quiet --python "$python" .venv
uv pip install --quiet --python .venv/bin/python --constraint requirements.lock -e ".[tpu]"
.venv/bin/prompt-tuning --help > /dev/null
echo "$(hostname): $(.venv/bin/python --version), jax $(.venv/bin/python -c \
  'import importlib.metadata as m; print(m.version("jax"), "libtpu", m.version("libtpu"))')"
