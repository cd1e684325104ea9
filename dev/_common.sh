# Shell functions of dev/lab and dev/test, for any POSIX shell. The caller sets "root" (the checkout) and sources this file.
# shellcheck shell=sh

# shellcheck disable=SC2154 # root is the caller's
gf_cache=$root/.cache
gf_logs=$gf_cache/logs
gf_log=$gf_logs/setup.log
mkdir -p "$gf_logs"
export LC_ALL=C.UTF-8

# -- words -----------------------------------------------------------------------------------------------------------

gf_say() { printf '%s\n' "$*"; }

gf_die() {
  printf '%s: %s\n' "${0##*/}" "$*" >&2
  exit 1
}

gf_now() { date +%s; }

gf_is_tty() { [ -t 1 ] && [ "${TERM:-dumb}" != dumb ]; }

# A line that the next one replaces; nothing where there is no terminal.
gf_passing() {
  if gf_is_tty; then printf '\r\033[K%.*s' "$(($(tput cols 2>/dev/null || echo 80) - 1))" "$*"; fi
}

# gf_done STEP SECONDS [TEXT]: one finished step.
gf_done() {
  if gf_is_tty; then printf '\r\033[K'; fi
  printf '  %-58s %4s s  %s\n' "$1" "$2" "${3:-}"
}

# gf_show_end LOG: the end of a log, for somebody who has to know why.
gf_show_end() {
  gf_say "  the last lines of $1:" >&2
  tail -n "${2:-15}" "$1" | sed 's/^/    /' >&2
}

# -- trying again ----------------------------------------------------------------------------------------------------

# gf_retry TIMES SECONDS COMMAND...: for registries that stumble.
gf_retry() {
  gf_retry_left=$1
  gf_retry_delay=$2
  shift 2
  while :; do
    if "$@"; then return 0; fi
    gf_retry_left=$((gf_retry_left - 1))
    if [ "$gf_retry_left" -le 0 ]; then return 1; fi
    gf_passing "  trying again in $gf_retry_delay s"
    sleep "$gf_retry_delay"
  done
}

# -- distribution packages -------------------------------------------------------------------------------------------

gf_apt() {
  DEBIAN_FRONTEND=noninteractive APT_LISTCHANGES_FRONTEND=none \
    apt-get -q -y -o DPkg::Lock::Timeout=300 -o Acquire::Retries=3 "$@" </dev/null >>"$gf_log" 2>&1
}

# gf_apt_install PACKAGE...: install what is missing of them.
gf_apt_install() {
  gf_missing=
  for gf_package in "$@"; do
    case $(dpkg-query -W -f '${db:Status-Status}' "$gf_package" 2>/dev/null) in
      installed) ;;
      *) gf_missing="$gf_missing $gf_package" ;;
    esac
  done
  if [ -z "$gf_missing" ]; then return 0; fi
  if ! command -v apt-get >/dev/null; then gf_die "these packages are missing, and there is no apt-get:$gf_missing"; fi
  if [ "$(id -u)" -ne 0 ]; then gf_die "these packages are missing, and only root can install them:$gf_missing"; fi
  gf_passing "  installing$gf_missing"
  # What is half installed since an earlier interruption keeps apt from working.
  dpkg --configure -a >>"$gf_log" 2>&1 </dev/null || true
  # shellcheck disable=SC2086 # a list of words
  if ! gf_apt install --no-install-recommends $gf_missing; then
    gf_retry 3 5 gf_apt update || { gf_show_end "$gf_log"; gf_die "apt-get update failed"; }
    # shellcheck disable=SC2086
    gf_retry 3 5 gf_apt install --no-install-recommends $gf_missing || {
      gf_show_end "$gf_log"
      gf_die "these packages could not be installed:$gf_missing"
    }
  fi
}

# gf_need_commands COMMAND:PACKAGE...: install the packages of the commands that are not there.
gf_need_commands() {
  gf_wanted=
  for gf_pair in "$@"; do
    if ! PATH=$PATH:/usr/sbin:/sbin command -v "${gf_pair%%:*}" >/dev/null; then gf_wanted="$gf_wanted ${gf_pair#*:}"; fi
  done
  # shellcheck disable=SC2086
  if [ -n "$gf_wanted" ]; then gf_apt_install $gf_wanted; fi
}

# -- Python ----------------------------------------------------------------------------------------------------------

# gf_find_python: sets gf_python to the Python that environments are made with: the distribution's, unless GPUFLEET_PYTHON names
# another one. One in PATH may be a version manager's shim that works in some directories only.
gf_find_python() {
  gf_python=${GPUFLEET_PYTHON:-/usr/bin/python3}
  if [ -z "${GPUFLEET_PYTHON:-}" ]; then gf_apt_install python3 python3-venv; fi
  if ! "$gf_python" -c 'import ensurepip, venv' 2>/dev/null; then
    gf_die "$gf_python cannot make virtual environments (its venv module is missing)"
  fi
  if ! "$gf_python" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
    gf_die "$gf_python is $("$gf_python" -V 2>&1), and ansible-core 2.19 needs 3.11 or later: name one in GPUFLEET_PYTHON"
  fi
}

# gf_venv DIRECTORY REQUIREMENTS: a virtual environment with exactly these packages. It is made once; a stamp says of what.
gf_venv() {
  gf_find_python
  gf_stamp="$("$gf_python" -c 'import sys; print(sys.version, sys.base_prefix)' | tr '\n' ' ') $(cksum <"$2")"
  if [ -x "$1/bin/python" ] && [ "$(cat "$1/stamp" 2>/dev/null)" = "$gf_stamp" ]; then return 0; fi
  # One at a time: dev/lab and dev/test may run side by side.
  (
    flock 9
    if [ "$(cat "$1/stamp" 2>/dev/null)" = "$gf_stamp" ]; then exit 0; fi
    gf_passing "  making a virtual environment"
    rm -rf "$1"
    "$gf_python" -m venv "$1" >>"$gf_log" 2>&1 || exit 1
    gf_passing "  installing $(basename "$2")"
    gf_retry 3 5 gf_pip "$1" -r "$2" || exit 1
    printf '%s\n' "$gf_stamp" >"$1/stamp"
  ) 9>"$1.lock" || {
    gf_show_end "$gf_log"
    gf_die "the virtual environment $1 could not be made"
  }
}

gf_pip() {
  gf_pip_venv=$1
  shift
  "$gf_pip_venv/bin/python" -m pip install --quiet --no-input --disable-pip-version-check "$@" </dev/null >>"$gf_log" 2>&1
}

# -- playbooks -------------------------------------------------------------------------------------------------------

# gf_playbook LOG ARGUMENT...: run ansible-playbook; everything goes to the log, one line for each play or role that took
# a second to the screen; on a terminal the task that runs now, too.
gf_playbook() {
  gf_play_log=$1
  shift
  gf_play_status=$gf_play_log.status
  : >"$gf_play_log"
  rm -f "$gf_play_status"
  {
    env -u ANSIBLE_INVENTORY -u ANSIBLE_STDOUT_CALLBACK ANSIBLE_CONFIG="$root/ansible.cfg" ANSIBLE_NOCOLOR=1 ANSIBLE_FORCE_COLOR=0 \
      PYTHONUNBUFFERED=1 ansible-playbook "$@" </dev/null 2>&1
    echo $? >"$gf_play_status"
  } | gf_follow "$gf_play_log"
  gf_play_rc=$(cat "$gf_play_status" 2>/dev/null || echo 1)
  rm -f "$gf_play_status"
  return "$gf_play_rc"
}

gf_follow() {
  gf_part=
  gf_part_since=$(gf_now)
  gf_play=
  while IFS= read -r gf_line; do
    printf '%s\n' "$gf_line" >>"$1"
    case $gf_line in
      'PLAY ['*)
        gf_play=${gf_line#PLAY [}
        gf_play=${gf_play%%]*}
        gf_next_part "$gf_play"
        ;;
      'TASK ['* | 'RUNNING HANDLER ['*)
        gf_task=${gf_line#*[}
        gf_task=${gf_task%]*}
        case $gf_task in
          *' : '*)
            gf_role=${gf_task%% : *}
            gf_next_part "$gf_play: ${gf_role##*.}"
            gf_task=${gf_task#* : }
            ;;
        esac
        gf_passing "  $gf_part ... $gf_task"
        ;;
      'PLAY RECAP '*) gf_next_part '' ;;
    esac
  done
  gf_next_part ''
}

gf_next_part() {
  if [ "$1" = "$gf_part" ]; then return 0; fi
  gf_part_now=$(gf_now)
  # Steps of no time are not worth a line.
  if [ -n "$gf_part" ] && [ "$gf_part_now" -gt "$gf_part_since" ]; then gf_done "$gf_part" $((gf_part_now - gf_part_since)); fi
  gf_part=$1
  gf_part_since=$gf_part_now
}

# gf_why LOG: what a playbook said about its failure.
gf_why() {
  gf_say "  why, as $1 has it:" >&2
  awk '
    /^(\[ERROR\]|fatal: |ERROR!|failed: )/ { show = 14 }
    /^(PLAY RECAP|TASK \[|PLAY \[)/ { show = 0 }
    show > 0 && lines < 40 { print "    " $0; show--; lines++ }
    /unreachable=[1-9]|failed=[1-9]/ { print "    " $0 }
  ' "$1" >&2
}
