#!/bin/sh
# Pins all that the SDK environments install, with hashes: requirements/*.in -> *.txt, node/package.json ->
# package-lock.json. Needs pip-compile (pip-tools) and npm on the PATH. No file names a registry.
set -eu
cd "$(dirname "$0")/requirements"
for name in new old; do
	pip-compile --quiet --upgrade --strip-extras --generate-hashes --no-header --no-emit-options \
		--no-emit-index-url --no-emit-trusted-host --no-emit-find-links --output-file "$name.txt" "$name.in"
done
cd ../node
npm install --package-lock-only --omit-lockfile-registry-resolved --no-audit --no-fund
