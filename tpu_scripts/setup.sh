#!/usr/bin/env bash
# Installs this package on every worker of a TPU: the tracked files of this checkout as they are.
#
#   setup.sh --name NAME --zone ZONE [--bucket BUCKET]
#
#   --bucket B      mounts the Cloud Storage bucket B at ~/bucket on every worker. A slice of several
#                   hosts needs a folder that all of them see for MODEL_DIR, and a spot VM one that
#                   outlives it
#   --python V      of the environment (3.12)
#   --project P     of Google Cloud
#   --dry-run       only shows the calls
#
# Running it again brings changed files over.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/gcloud.sh"

FLAGS='bucket python'
SWITCHES=''
opt_bucket='' opt_python=3.12
parse "$@"
no_arguments
[[ $opt_python =~ ^3\.1[123]$ ]] || die "The package does not run on that Python" \
  "--python $opt_python" "3.11, 3.12 or 3.13" "--python 3.12"
opt_bucket=${opt_bucket#gs://}
[[ $opt_bucket != */* ]] || die "A bucket is mounted whole" "--bucket $opt_bucket" \
  "the bucket's name" "--bucket ${opt_bucket%%/*}, and a MODEL_DIR below ~/bucket"

remember setup "$@"
need_ready
archive=$(mktemp -d)/prompt_tuning.tar.gz
trap 'rm -rf "$(dirname "$archive")"' EXIT
root=$(dirname "$SCRIPTS")
# Deleted files are still in git's list.
git -C "$root" ls-files -z | while IFS= read -r -d '' file; do
  [[ ! -f $root/$file ]] || printf '%s\0' "$file"
done > "$archive.list"
tar -C "$root" --null -T "$archive.list" -czf "$archive"
tpus tpu-vm scp "$archive" "$opt_name:prompt_tuning.tar.gz" --worker=all
run "${TPUS[@]}"
on_workers all bash -c "mkdir -p $REMOTE_SOURCE && tar -xzf prompt_tuning.tar.gz -C $REMOTE_SOURCE"
on_workers all bash "$REMOTE_SCRIPTS/install.sh" "$opt_python" "$opt_bucket"
say "Next: launch.sh --name $opt_name --zone $opt_zone --run RUN -- prompt-tuning train ..."
