#!/usr/bin/env bash
# Copies what a run left, from worker 0 or from a bucket, to this machine.
#
#   fetch.sh --name NAME --zone ZONE --from MODEL_DIR [--to FOLDER]
#
#   --from DIR      MODEL_DIR as the run had it (~/bucket/... or a path on the worker), or gs://...
#   --to FOLDER     where to (runs/)
#   --project P     of Google Cloud
#   --dry-run       only shows the calls
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/gcloud.sh"

FLAGS='from to'
SWITCHES=''
opt_from='' opt_to=runs
parse "$@"
no_arguments
opt_from=${opt_from%/}
[[ -n $opt_from ]] || die "Nothing to fetch is named" "no --from" "the run's MODEL_DIR" \
  "--from bucket/my_run"

run mkdir -p "$opt_to"
if [[ $opt_from == gs://* ]]; then
  target=$opt_to/$(basename "$opt_from")
  run mkdir -p "$target"
  run gcloud storage rsync --recursive "$opt_from" "$target"
else
  need_ready
  # Paths of scp start at the home folder.
  opt_from=${opt_from#"~/"}
  tpus tpu-vm scp "$opt_name:$opt_from" "$opt_to" --recurse --worker=0
  run "${TPUS[@]}"
fi
say "In $opt_to/$(basename "$opt_from")"
