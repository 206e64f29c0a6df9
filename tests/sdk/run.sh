#!/usr/bin/env bash
# The official SDKs through the proxy to the simulator: the newest Python major of each, the one before, and Node.
#
#   tests/sdk/run.sh                     all three, side by side
#   tests/sdk/run.sh new -k openai -x    one of new, old and node; what follows goes to pytest (or to node --test)
#
# What is missing is installed first, pinned and with hashes, beside this file; it is kept while the pins are the
# same. $PYTHON is the Python that llmproxy is installed in, by default that of .venv. Without Node 20 or newer the
# Node SDKs are left out, and the last line says so; in CI that is a failure.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(cd "$here/../.." && pwd)
cd "$root"
PYTHON=${PYTHON:-$root/.venv/bin/python}
# The SDKs read these; the tests say everything themselves. A forward proxy would be asked in place of ours.
unset OPENAI_{API_KEY,BASE_URL,ORG_ID,PROJECT_ID} ANTHROPIC_{API_KEY,AUTH_TOKEN,BASE_URL} GOOGLE_API_KEY
unset GEMINI_API_KEY GOOGLE_{GEMINI_BASE_URL,GENAI_API_VERSION,GENAI_USE_VERTEXAI} GROQ_{API_KEY,BASE_URL}
unset {HTTP,HTTPS,ALL,NO}_PROXY {http,https,all,no}_proxy

has_node() { command -v npm >/dev/null && [ "$(node -p 'parseInt(process.versions.node)' 2>/dev/null || echo 0)" -ge 20 ]; }

# Makes the environment NAME unless it was made from the same pins: a copy of them lies in it.
install() {
	local name=$1 pins made
	case $name in
	new | old)
		pins=$here/requirements/$name.txt made=$here/.venv-$name
		cmp -s "$pins" "$made/pins" && return
		rm -rf "$made"
		"$PYTHON" -m venv "$made" || return
		"$made/bin/python" -m pip install -qq --disable-pip-version-check --require-hashes --no-deps -r "$pins" || return
		;;
	node)
		pins=$here/node/package-lock.json made=$here/node/node_modules
		cmp -s "$pins" "$made/pins" && return
		npm ci --prefix "$here/node" --ignore-scripts --no-audit --no-fund --loglevel=error || return
		;;
	*)
		echo "run.sh: $name is none of new, old and node" >&2
		return 2
		;;
	esac
	cp "$pins" "$made/pins"
}

# Runs the tests of NAME with a simulator and a proxy of their own.
run() {
	local name=$1 command
	shift
	if [ "$name" = node ]; then
		command=(node --test --test-concurrency=1 --test-reporter=spec "$@" "$here"/node/*.test.mjs)
	else
		command=("$here/.venv-$name/bin/python" -m pytest -c "$here/pytest.ini" --rootdir="$here" "$here" "$@")
	fi
	PYTHONPATH=$root/scripts "$PYTHON" "$here/stack.py" "${command[@]}"
}

if [ $# -gt 0 ]; then
	install "$1"
	run "$@"
	exit
fi

logs=$(mktemp -d)
trap 'rm -rf "$logs"' EXIT
names=(new old)
if has_node; then names+=(node); fi
declare -A jobs
for name in "${names[@]}"; do
	{ install "$name" && run "$name"; } >"$logs/$name" 2>&1 &
	jobs[$name]=$!
done
failed=()
for name in "${names[@]}"; do
	wait "${jobs[$name]}" || failed+=("$name")
	printf '== %s\n' "$name"
	cat "$logs/$name"
done
if ! has_node; then
	echo "The Node SDKs were left out: there is no Node 20 or newer on this machine."
	[ -z "${CI:-}" ] || failed+=(node)
fi
[ ${#failed[@]} -eq 0 ] || { echo "The SDK tests failed: ${failed[*]}" >&2 && exit 1; }
