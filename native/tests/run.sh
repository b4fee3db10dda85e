#!/bin/sh
# Builds the native core without Python and runs its tests: AddressSanitizer with UBSan, then ThreadSanitizer.
#   native/tests/run.sh [fuzz seed] [fuzz rounds] [thread rounds]
set -eu
cd "$(dirname "$0")/.."
out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT
cc=${CC:-cc}
flags="-std=c11 -g -O1 -fno-omit-frame-pointer -Wall -Wextra -Wshadow -Werror -Iinclude"
memory="-fsanitize=address,undefined -fno-sanitize-recover=all"
$cc $flags $memory src/arena_*.c tests/test_arena.c -o "$out/arena" -lpthread
$cc $flags $memory src/arena_*.c tests/test_fuzz.c -o "$out/fuzz" -lpthread
$cc $flags -fsanitize=thread -Dmmap=one_mapping_mmap -Dmunmap=one_mapping_munmap \
  src/arena_*.c tests/one_mapping.c tests/test_threads.c -o "$out/threads" -lpthread
$cc $flags $memory src/ring.c src/arena_*.c tests/test_ring.c -o "$out/ring" -lpthread
$cc $flags -fsanitize=thread -Dmmap=one_mapping_mmap -Dmunmap=one_mapping_munmap \
  src/ring.c src/arena_*.c tests/one_mapping.c tests/test_ring.c -o "$out/ring_threads" -lpthread
$cc $flags $memory src/mailbox_gate.c tests/test_mailbox.c -o "$out/mailbox" -lpthread
$cc $flags -fsanitize=thread src/mailbox_gate.c tests/test_mailbox.c -o "$out/mailbox-threads" -lpthread
"$out/mailbox"
TSAN_OPTIONS=halt_on_error=1 "$out/mailbox-threads"
"$out/arena"
"$out/ring" "${1:-1}" "${2:-400}"
"$out/fuzz" "${1:-1}" "${2:-400}"
TSAN_OPTIONS=halt_on_error=1 "$out/threads" "${3:-20000}"
TSAN_OPTIONS=halt_on_error=1 "$out/ring_threads" threads "${3:-20000}"
