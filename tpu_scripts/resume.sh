#!/usr/bin/env bash
# Brings a preempted TPU back and goes on with its run: delete, create, setup and launch once more,
# as they were called from this machine. The run resumes from its MODEL_DIR, which must have outlived
# the VM: a folder of the bucket.
#
#   resume.sh --name NAME --zone ZONE [--watch]
#
#   --watch         looks every minute, until the run has ended by itself on every worker
#   --attempts N    with --watch: how often it may be brought back (100)
#   --project P     of Google Cloud
#   --dry-run       only shows the calls
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/gcloud.sh"

FLAGS='attempts'
SWITCHES='watch'
opt_attempts=100 opt_watch=false
parse "$@"
no_arguments
[[ $opt_attempts =~ ^[1-9][0-9]*$ ]] || die "--attempts is not a count" "$opt_attempts" "1 or more" \
  "--attempts 100"

again() {
  recall "$1"
  local words=("${RECALLED[@]}")
  ! $opt_dry_run || words=(--dry-run "${words[@]}")
  "$SCRIPTS/$1.sh" "${words[@]}"
}

is_queued() {
  recall create
  [[ " ${RECALLED[*]} " == *" --queued "* ]]
}

bring_back() {
  local state=$1
  if [[ $state != READY ]]; then
    if [[ $state != MISSING ]] || is_queued; then
      local words=(--name "$opt_name" --zone "$opt_zone" --yes --keep-state)
      [[ -z $opt_project ]] || words+=(--project "$opt_project")
      ! is_queued || words+=(--queued)
      ! $opt_dry_run || words+=(--dry-run)
      "$SCRIPTS/delete.sh" "${words[@]}"
    fi
    again create
    again setup
  fi
  again launch
}

# run_state: of the launched run, `running`, `ended 0` ... on the workers, a line each.
run_state() {
  recall launch
  local i word run=''
  for ((i = 0; i < ${#RECALLED[@]}; i++)); do
    word=${RECALLED[i]}
    case $word in
      --) break ;;
      --run) run=${RECALLED[i + 1]} ;;
      --run=*) run=${word#--run=} ;;
    esac
  done
  on_workers all bash "$REMOTE_SCRIPTS/status.sh" "$run" 2> /dev/null
}

# All three must be known before anything is deleted.
for what in create setup launch; do recall "$what"; done

if ! $opt_watch; then
  state=PREEMPTED
  $opt_dry_run || state=$(tpu_state)
  case $state in
    CREATING | STARTING | REPAIRING | RESTARTING)
      die "The TPU is on its way" "$opt_name is $state" "a TPU that is gone, or READY" "wait" ;;
  esac
  bring_back "$state"
  exit 0
fi

! $opt_dry_run || die "A rehearsal has nothing to watch" "--watch --dry-run" "one of them" \
  "leave one out"
attempts=0 told=false
while true; do
  state=$(tpu_state)
  what=''
  case $state in
    READY)
      # A worker that cannot be reached may be about to go: ask again.
      if what=$(run_state); then
        if [[ $what == *"ended 2"* ]]; then
          die "The run stopped by a mistake in its settings" "$what" "a run that resumes" \
            "logs.sh tells which"
        elif [[ $what == *"ended 75"* ]] && ! $told; then
          # The run was told to stop: the TPU is about to go, and does not say so yet.
          told=true what=''
        elif [[ $what != *running* && $what != *ended\ [1-9]* && $what != *"not started"* ]]; then
          say "The run has ended on every worker."
          exit 0
        elif [[ $what == *running* ]]; then
          what=''
        fi
      else
        what=''
      fi ;;
    CREATING | STARTING | REPAIRING | RESTARTING) ;;
    *) what=$state ;;
  esac
  if [[ -n $what ]]; then
    ((attempts < opt_attempts)) || die "The run was brought back too often" "$attempts attempts" \
      "a run that ends" "see its log"
    attempts=$((attempts + 1)) told=false
    say "$opt_name: $what; attempt $attempts"
    bring_back "$state"
  fi
  sleep "${TPU_POLL_SECONDS:-60}"
done
