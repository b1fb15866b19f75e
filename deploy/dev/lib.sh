# shellcheck shell=bash
#
# What deploy/dev/install, rabbitmq, postgres and with-services share: finding the programs, free ports, and
# processes that are known by more than their number.
#
# Usage: . "$(dirname "$(readlink -f "$0")")/lib.sh" (bash, under `set -euo pipefail`).
#
# An instance lives in a directory of its own, DIR:
#   DIR/kind        "rabbitmq" or "postgres"
#   DIR/how         "native" or "docker", decided by the first start
#   DIR/root        the system whose programs it runs, as deploy/dev/trixie makes one; empty for this machine's (native)
#   DIR/port        the port on 127.0.0.1, kept for every later start
#   DIR/url         what a client connects to
#   DIR/pid         process id of the server (native); DIR/pid.born tells it from a later process of the same number
#   DIR/log/        what the server had to say

say() { printf '%s: %s\n' "deploy/dev/${0##*/}" "$*" >&2; }
die() {
	say "$*"
	exit 1
}

# An absolute path for a directory that may not exist yet.
absolute() {
	case $1 in
	/*) printf '%s\n' "$1" ;;
	*) printf '%s/%s\n' "$PWD" "$1" ;;
	esac
}

# ---- programs -------------------------------------------------------------------------------------------------------

# find_rabbitmq [ROOT]: the server script itself, by its path in the system under ROOT: the one in /usr/sbin insists on
# becoming the user rabbitmq.
find_rabbitmq() {
	local root=${1:-} candidate
	if [[ -n $root ]]; then [[ -x $root/usr/bin/erl ]]; else command -v erl >/dev/null; fi || return 1
	for candidate in "$root"/usr/lib/rabbitmq/bin/rabbitmq-server "$root"/usr/lib/rabbitmq/lib/rabbitmq_server-*/sbin/rabbitmq-server; do
		if [[ -x $candidate ]]; then
			printf '%s\n' "${candidate#"$root"}"
			return 0
		fi
	done
	[[ -z $root ]] || return 1
	candidate=$(command -v rabbitmq-server) || return 1
	# A wrapper that changes the user is of no use; a plain installation has rabbitmq-env beside the script.
	candidate=$(readlink -f "$candidate")
	[[ -x ${candidate%/*}/rabbitmq-env ]] || return 1
	printf '%s\n' "$candidate"
}

# find_postgresql [ROOT]: the directory with PostgreSQL's server programs, by its path in the system under ROOT: Debian keeps
# them off the PATH, one directory for each version.
find_postgresql() {
	local root=${1:-} newest found
	newest=$(printf '%s\n' "$root"/usr/lib/postgresql/*/bin/postgres | sort -rV | head -n 1)
	if [[ -x $newest && -x ${newest%/*}/initdb ]]; then
		newest=${newest%/*}
		printf '%s\n' "${newest#"$root"}"
		return 0
	fi
	[[ -z $root ]] || return 1
	found=$(command -v postgres) || return 1
	found=$(readlink -f "$found")
	[[ -x ${found%/*}/initdb ]] || return 1
	printf '%s\n' "${found%/*}"
}

# choose_system ROOT DIR: for what is to be run for the instance in DIR by the programs of the system under ROOT, or of this
# one if ROOT is empty. It sets
#   inside       the beginning of such a command
#   dir_inside   what DIR is called for it
#   path_inside  its PATH
# What is mounted is seen by that command and its children alone, and gone with the last of them.
# shellcheck disable=SC2034 # whoever calls it uses them
choose_system() {
	if [[ -z $1 ]]; then
		inside=() dir_inside=$2 path_inside=$PATH
		return
	fi
	((EUID == 0)) || die "only root may run programs of the system under $1 (chroot)"
	dir_inside=/mnt path_inside=/usr/sbin:/usr/bin
	# shellcheck disable=SC2016 # the inner shell expands them
	inside=(unshare --mount --propagation private -- sh -euc '
		mount -t proc proc "$1/proc"
		mount --bind "$2" "$1/mnt"
		root=$1
		shift 2
		exec chroot "$root" "$@"' - "$1" "$2")
}

docker_runs() { command -v docker >/dev/null && timeout 10 docker info >/dev/null 2>&1 </dev/null; }

# ---- processes ------------------------------------------------------------------------------------------------------

# "state parent threads start-time" of a process, from /proc: the name in brackets may hold blanks, so it is cut off first.
process_facts() {
	local line
	{ IFS= read -r line <"/proc/$1/stat"; } 2>/dev/null || return 1
	line=${line##*) }
	# shellcheck disable=SC2086 # split into fields on purpose
	set -- $line
	printf '%s %s %s %s\n' "$1" "$2" "${18}" "${20}"
}

born() {
	local facts
	facts=$(process_facts "$1") || return 1
	printf '%s\n' "${facts##* }"
}

# A zombie is gone: whoever has to reap it is not ours to wait for. But of one that was killed the first thread may be a zombie
# while another still has its files and ports, because a disk has not answered it yet.
alive() {
	local facts state threads
	facts=$(process_facts "$1") || return 1
	read -r state _ threads _ <<<"$facts"
	[[ $state != [ZX] ]] || ((threads > 1))
}

# remember_process FILE PID: so that running_process can tell it from a stranger with the same number later.
remember_process() {
	born "$2" >"$1.born" || return 1
	printf '%s\n' "$2" >"$1"
}

# The process id in FILE if that very process still runs.
running_process() {
	local pid
	[[ -s $1 && -s $1.born ]] || return 1
	pid=$(<"$1")
	alive "$pid" && [[ $(born "$pid") == "$(<"$1.born")" ]] || return 1
	printf '%s\n' "$pid"
}

# A process and everything below it, one id a line.
process_tree() {
	local -A children=()
	local stat pid facts parent
	for stat in /proc/[0-9]*/stat; do
		pid=${stat#/proc/}
		pid=${pid%/stat}
		facts=$(process_facts "$pid") || continue
		read -r _ parent _ <<<"$facts"
		children[$parent]+=" $pid"
	done
	local -a queue=("$1")
	while ((${#queue[@]})); do
		pid=${queue[0]}
		printf '%s\n' "$pid"
		# shellcheck disable=SC2206 # split into ids on purpose
		queue=("${queue[@]:1}" ${children[$pid]:-})
	done
}

# wait_gone SECONDS PID...: false if one is still there after that.
wait_gone() {
	local deadline=$((SECONDS + $1)) pid
	shift
	for pid; do
		while alive "$pid"; do
			((SECONDS < deadline)) || return 1
			sleep 0.05
		done
	done
}

# kill_tree PID: SIGKILL for a process and everything below it, and wait until all are gone. It is stopped first, so that
# it cannot start another child in between.
kill_tree() {
	local -a pids
	kill -STOP "$1" 2>/dev/null || return 0
	mapfile -t pids < <(process_tree "$1")
	kill -KILL "${pids[@]}" 2>/dev/null || true
	wait_gone 10 "${pids[@]}" || die "process $1 does not go away"
}

# stop_tree SECONDS PID: SIGTERM, and false if it or one of its children is still there after that time.
stop_tree() {
	local -a pids
	mapfile -t pids < <(process_tree "$2")
	kill -TERM "$2" 2>/dev/null || return 0
	wait_gone "$1" "${pids[@]}"
}

# For a server that is about to be started in the background: a session of its own (Ctrl-C at the terminal is not for it)
# and none of the caller's files but its log: whoever reads the caller's output would wait for the server to end.
# Usage: detached LOGFILE COMMAND... & pid=$!
detached() {
	local fd log=$1
	shift
	exec </dev/null >>"$log" 2>&1
	for fd in /proc/self/fd/*; do
		fd=${fd##*/}
		if ((fd > 2 && fd < 200)); then eval "exec $fd>&-"; fi
	done
	exec setsid "$@"
}

# ---- ports ----------------------------------------------------------------------------------------------------------

# Whether somebody listens there (state 0A). What a server that was killed has left in TIME_WAIT keeps nobody away.
port_taken() {
	local hex
	printf -v hex '%04X' "$1"
	grep -qsE "^ *[0-9]+: [0-9A-F]+:$hex [0-9A-F]+:[0-9A-F]+ 0A " /proc/net/tcp /proc/net/tcp6
}

# A port that nobody uses, below the range that the kernel takes for outgoing connections.
free_port() {
	local port
	for _ in {1..100}; do
		port=$((15000 + (RANDOM * 32768 + RANDOM) % 17000))
		if ! port_taken "$port"; then
			printf '%s\n' "$port"
			return 0
		fi
	done
	die "no free port between 15000 and 32000"
}

# ---- Docker ---------------------------------------------------------------------------------------------------------

container_name() { printf 'rollcall-dev-%s\n' "$(printf '%s' "$1" | sha256sum | cut -c1-16)"; }
# shellcheck disable=SC2154 # dir: see instance_main
stop_docker() {
	if container_runs "$(container_name "$dir")"; then docker stop -t 60 "$(container_name "$dir")" >/dev/null; fi
}
# shellcheck disable=SC2154
kill_docker() {
	if container_runs "$(container_name "$dir")"; then docker kill "$(container_name "$dir")" >/dev/null; fi
}
freeze_native() { kill -STOP "$(running_process "$dir/pid")"; }
thaw_native() { kill -CONT "$(running_process "$dir/pid")"; }
# shellcheck disable=SC2154
freeze_docker() { docker pause "$(container_name "$dir")" >/dev/null; }
# shellcheck disable=SC2154
thaw_docker() { docker unpause "$(container_name "$dir")" >/dev/null; }
# shellcheck disable=SC2154
remove_docker() { docker rm --force --volumes "$(container_name "$dir")" >/dev/null 2>&1 || true; }
container_runs() { [[ $(docker inspect -f '{{.State.Running}}' "$1" 2>/dev/null) == true ]]; }

# ---- the verbs of `rabbitmq` and `postgres` -------------------------------------------------------------------------

# instance_main KIND PRODUCT FIND VERB DIR [PORT]: what both scripts do with their arguments. FIND says whether PRODUCT is
# installed, here or under a root directory. The script has a function for each verb and way to run:
# {start,stop,kill,remove}_{native,docker}; start returns non-zero when the server does not answer (nothing of it runs
# then), url prints the URL, $dir is the instance's directory, $port its port and $root as DIR/root says.
instance_main() {
	kind=$1 product=$2 find=$3 verb=${4:-} dir=${5:-} port=${6:-}
	start_seconds=${ROLLCALL_DEV_START_SECONDS:-60}
	local usage='usage: start DIR [PORT] | stop DIR | kill DIR | freeze DIR | thaw DIR | remove DIR'
	[[ -n $dir && $# -le 6 && $port =~ ^[0-9]*$ ]] || die "$usage"
	dir=$(absolute "$dir")
	case $verb in
	start)
		mkdir -p "$dir"
		dir=$(cd "$dir" && pwd -P)
		instance_start
		;;
	stop | kill | freeze | thaw | remove)
		if [[ ! -d $dir ]]; then
			[[ $verb == remove ]] || die "no such directory: $dir"
			return
		fi
		dir=$(cd "$dir" && pwd -P)
		[[ $(cat "$dir/kind" 2>/dev/null) == "$kind" ]] || die "$dir is not a directory of deploy/dev/$kind"
		root=$(<"$dir/root")
		"${verb}_$(<"$dir/how")"
		if [[ $verb == remove ]]; then rm -rf "$dir"; fi
		;;
	*) die "$usage" ;;
	esac
}

instance_start() {
	local fixed=$port how attempts=1 began
	if [[ ! -s $dir/how ]]; then
		root=ROLLCALL_DEV_${kind^^}_ROOT
		root=${!root:-}
		if "$find" "$root" >/dev/null; then
			how=native
		elif [[ -n $root ]]; then
			die "$product is not installed in the system under $root"
		elif docker_runs; then
			how=docker
		else
			die "$product is not installed and no Docker engine runs: run deploy/dev/install ${find#find_}"
		fi
		mkdir -p "$dir/log"
		printf '%s\n' "$root" >"$dir/root"
		printf '%s\n' "$kind" >"$dir/kind"
		printf '%s\n' "$how" >"$dir/how"
	fi
	how=$(<"$dir/how") root=$(<"$dir/root")
	if [[ -s $dir/port ]]; then
		fixed=$(<"$dir/port")
		[[ -z $port || $port == "$fixed" ]] || die "$dir belongs to port $fixed, not $port"
	fi
	# Between choosing a free port and listening on it somebody else may take it: then another one. Also one that has a port takes
	# more of them at each start.
	if [[ $how == native || -z $fixed ]]; then attempts=3; fi
	while true; do
		port=${fixed:-$(free_port)}
		began=$SECONDS
		if "start_$how"; then break; fi
		if ((--attempts == 0 || SECONDS - began >= start_seconds)); then
			tail -n 40 "$dir"/log/* >&2 2>/dev/null || true
			die "$product does not answer on 127.0.0.1:$port; its log is in $dir/log"
		fi
		# One that has its port has data, too.
		if [[ -z $fixed ]]; then "remove_$how"; fi
	done
	printf '%s\n' "$port" >"$dir/port"
	url | tee "$dir/url"
}
