# Starts a watch in the background and then becomes the program. The watch ends the program when its owner is gone. Both are
# in one process group, whose number is in use until the watch ends, so no signal can reach another process.
#
# Standard input is a pipe; only the owner has its other end.
# Arguments: the signal that ends the program, a folder to remove afterwards (or ''), the standard input of the program
# ("null", or "output": the descriptor that is passed as standard output), the program, its arguments.
signal=$1 folder=$2 input=$3
shift 3
exec 3<&0
(
    trap '' HUP INT QUIT TERM
    exec >/dev/null 2>&1
    read -r _ <&3
    kill -s "$signal" -- "-$$"
    n=0
    while kill -0 "$$" && [ "$n" -lt 100 ]; do
        sleep 0.1
        n=$((n + 1))
    done
    kill -s KILL "$$"
    [ -z "$folder" ] || rm -rf -- "$folder"
    kill -s KILL -- "-$$"
) &
if [ "$input" = output ]; then
    exec "$@" <&1 >/dev/null 3<&-
fi
exec "$@" </dev/null 3<&-
