"""Call an actor without Loom: python plain_client.py NODE_ENDPOINT ACTOR METHOD [JSON...]; see loom/wire/PROTOCOL.md."""

import json
import sys

import msgpack
import zmq


def ask(endpoint, method, args, call_id, timeout_s=30):
    """Yield what one call gives: its result, or the items of its stream."""
    with zmq.Context.instance().socket(zmq.DEALER, linger=0) as actor, actor.connect(endpoint):
        actor.send_multipart([msgpack.packb({"id": call_id, "kind": "call", "name": method}), msgpack.packb([args])])
        while actor.poll(timeout_s * 1000):
            header, body = map(msgpack.unpackb, actor.recv_multipart()[:2])
            if header["kind"] == "error":
                sys.exit(f"{body['code']} {body['type']}: {body['message']}")
            if header["kind"] in ("reply", "item"):
                yield body
            if header["kind"] == "item":  # there is room for one more
                actor.send_multipart([msgpack.packb({"id": 0, "kind": "credit", "correlation_id": call_id, "credit": 1}), b"\xc0"])
            elif header["kind"] in ("reply", "end"):
                return
        sys.exit(f"no answer within {timeout_s} s")


node, name, method, *args = sys.argv[1:]
(address,) = ask(node, "resolve", [name], 1)
for value in ask(address["endpoint"], method, [json.loads(arg) for arg in args], 2):
    print(json.dumps(value, default=str))
