#!/bin/sh
# gRPC's own Python interop tests, from Debian's source package of grpc, with stubs for the grpcio of today.
#
#   fetch.sh FOLDER PYTHON    FOLDER is made anew; PYTHON must have grpcio-tools
#
# The package is looked up where this machine gets its packages from, in a private list: nothing of the system changes.
set -eu
folder=$1
python=$2
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

mkdir -p "$work/lists/partial" "$work/parts"
for list in /etc/apt/sources.list.d/debian.sources /etc/apt/sources.list; do
  [ -f "$list" ] || continue
  case $list in
    *.sources) sed 's/^Types:.*/Types: deb-src/' "$list" > "$work/parts/$(basename "$list")" ;;
    *) sed -n 's/^deb /deb-src /p' "$list" > "$work/parts/system.list" ;;
  esac
done
apt() {
  apt-get -qq -o Dir::Etc::sourcelist=/dev/null -o Dir::Etc::sourceparts="$work/parts" \
    -o Dir::State::lists="$work/lists" -o APT::Sandbox::User=root "$@"
}
apt update
(cd "$work" && apt source --download-only grpc)
mkdir "$work/grpc"
tar -xzf "$work"/grpc_*.orig.tar.gz -C "$work/grpc" --strip-components=1

rm -rf "$folder"
mkdir -p "$folder/tests/unit" "$folder/tests/interop" "$folder/src/proto/grpc/testing"
cp "$work"/grpc/src/python/grpcio_tests/tests/interop/*.py "$folder/tests/interop"
cp "$work"/grpc/src/python/grpcio_tests/tests/unit/test_common.py "$folder/tests/unit"
for proto in empty messages test; do
  cp "$work/grpc/src/proto/grpc/testing/$proto.proto" "$folder/src/proto/grpc/testing"
done
"$python" -m grpc_tools.protoc -I "$folder" --python_out="$folder" --grpc_python_out="$folder" \
  "$folder"/src/proto/grpc/testing/*.proto
find "$folder" -type d -exec touch {}/__init__.py \;
