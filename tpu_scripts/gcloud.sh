# Sourced by every script of this folder: flags, errors, and calls of gcloud that can be rehearsed.
# shellcheck shell=bash disable=SC2034
#
# A script sets FLAGS (take a value) and SWITCHES (do not), gives defaults to `opt_<flag>`, and calls
# `parse "$@"`. What follows `--` lands in ARGS. Works with the bash 3.2 of macOS: no associative
# arrays, and empty arrays are expanded with care.

SCRIPTS=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# What create, setup and launch were called with, so that resume.sh can do it again.
STATE=${PROMPT_TUNING_TPU_STATE:-$HOME/.config/prompt_tuning/tpu}
# Where things are on a worker: paths below its home folder.
REMOTE_SOURCE=prompt_tuning
REMOTE_SCRIPTS=$REMOTE_SOURCE/tpu_scripts/on_worker

opt_name=${TPU_NAME:-}
opt_zone=${TPU_ZONE:-}
opt_project=${TPU_PROJECT:-}
opt_dry_run=false
ARGS=()

# usage: prints the comment at the top of the script.
usage() {
  sed -n '2,/^[^#]/{/^#/{s/^# \{0,1\}//;p;};}' "$0"
}

# die WHAT FOUND WANTED FIX
die() {
  printf '%s\n  found:  %s\n  wanted: %s\n  fix:    %s\n' "$1" "$2" "$3" "$4" >&2
  exit 2
}

say() { printf '%s\n' "$*" >&2; }

parse() {
  local given=("$@") flag value known
  while (($#)); do
    flag=$1
    case $flag in
      -h | --help) usage; exit 0 ;;
      --) shift; ARGS=("$@"); break ;;
    esac
    value=''
    case $flag in --*=*) value=${flag#*=} flag=${flag%%=*} ;; esac
    known=${flag#--}
    known=${known//-/_}
    if [[ " $SWITCHES dry_run " == *" $known "* && $flag == --* && $1 != *=* ]]; then
      value=true
    elif [[ " $FLAGS name zone project " == *" $known "* && $flag == --* ]]; then
      if [[ $1 != *=* ]]; then
        (($# > 1)) || die "$flag has no value" "${given[*]}" "$flag VALUE" "see $0 --help"
        shift
        value=$1
      fi
    else
      die "$(basename "$0") does not take $1" "${given[*]}" "a flag that --help lists" \
        "see $0 --help"
    fi
    printf -v "opt_$known" '%s' "$value"
    shift
  done
  [[ -n $opt_name ]] || die "No TPU is named" "no --name" "--name NAME" "or set TPU_NAME"
  [[ -n $opt_zone ]] || die "No zone is named" "no --zone" "--zone ZONE, such as us-west4-a" \
    "or set TPU_ZONE"
  [[ $opt_name =~ ^[a-z]([-a-z0-9]{0,61}[a-z0-9])?$ ]] || die "The name is none that Google Cloud takes" \
    "$opt_name" "lower-case letters, digits and dashes, a letter first" "rename it"
}

no_arguments() {
  ((${#ARGS[@]} == 0)) || die "$(basename "$0") takes no command" "-- ${ARGS[*]}" \
    "nothing after --" "leave it out"
}

# quoted WORD...: one line that a shell reads as these words.
quoted() {
  local line
  printf -v line '%q ' "$@"
  printf '%s' "${line% }"
}

# run COMMAND...: shows it, and does it unless this is a rehearsal.
run() {
  say "+ $(quoted "$@")"
  $opt_dry_run || "$@"
}

# tpus GROUP VERB ARGUMENT...: gcloud's words, with zone and project.
tpus() {
  local group=$1 verb=$2
  shift 2
  TPUS=(gcloud compute tpus "$group" "$verb" "$@" "--zone=$opt_zone")
  [[ -z $opt_project ]] || TPUS+=("--project=$opt_project")
}

# tpu_state: READY, CREATING, PREEMPTED, ... or MISSING. A question that changes nothing, so a
# rehearsal asks it too, where gcloud is installed.
tpu_state() {
  local answer
  tpus tpu-vm describe "$opt_name" "--format=value(state)"
  if answer=$("${TPUS[@]}" 2>&1); then
    printf '%s\n' "${answer##*$'\n'}"
  elif [[ $answer == *NOT_FOUND* || $answer == *"not found"* || $answer == *"was not found"* ]]; then
    echo MISSING
  else
    say "$answer"
    die "gcloud cannot say in which state $opt_name is" "the message above" \
      "an answer of: $(quoted "${TPUS[@]}")" "gcloud auth login, and the right --project and --zone"
  fi
}

need_ready() {
  local state
  $opt_dry_run && return
  state=$(tpu_state)
  [[ $state == READY ]] || die "The TPU is not ready" "$opt_name is $state" "READY" \
    "create.sh if it is MISSING; resume.sh after PREEMPTED or TERMINATED; else wait"
}

# on_workers WHICH WORD...: runs a command line on a worker, or on `all`. Connections fail now and
# then, above all to a young VM: three attempts for a failed connection, none for a failed command.
on_workers() {
  local which=$1 attempt code
  shift
  tpus tpu-vm ssh "$opt_name" "--worker=$which" "--command=$(quoted "$@")"
  for attempt in 1 2 3; do
    code=0
    run "${TPUS[@]}" || code=$?
    # ssh's own failure; a command's would be its own number.
    ((code == 255 && attempt < 3)) || return $code
    say "no connection (attempt $attempt of 3); again in $((attempt * ${TPU_RETRY_SECONDS:-10})) s"
    sleep $((attempt * ${TPU_RETRY_SECONDS:-10}))
  done
}

# remember WHAT WORD...: for resume.sh.
remember() {
  local file=$STATE/$opt_name/$1
  shift
  $opt_dry_run && return
  mkdir -p "$(dirname "$file")"
  # Where the TPU is may have been said by variables, which can name another one by then.
  printf '%s\0' --name "$opt_name" --zone "$opt_zone" ${opt_project:+"--project=$opt_project"} \
    "$@" > "$file"
}

# recall WHAT: into RECALLED.
recall() {
  local file=$STATE/$opt_name/$1 word
  [[ -f $file ]] || die "Nothing is known of the $1 of $opt_name" "no $file" \
    "a $1.sh from this machine" "run $1.sh"
  RECALLED=()
  while IFS= read -r -d '' word; do RECALLED+=("$word"); done < "$file"
}

# valid_run NAME: a run's name is a folder's.
valid_run() {
  [[ $1 =~ ^[A-Za-z0-9][A-Za-z0-9._-]*$ ]] || die "The run's name cannot name a folder" "'$1'" \
    "letters, digits, dots, dashes" "--run NAME"
}
