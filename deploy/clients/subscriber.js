// Prints what a neuromod daemon publishes, one JSON line a message: node subscriber.js [N [ADDRESS]]. README.md tells more.
import { decode } from "@msgpack/msgpack";
import { Subscriber } from "zeromq";

const [count = "10", address = "tcp://127.0.0.1:5556"] = process.argv.slice(2);
const { NEUROMOD_SERVER_KEY, NEUROMOD_PUBLIC_KEY, NEUROMOD_SECRET_KEY } = process.env;

// libzmq drops what waits beyond the mark, silently; without a heartbeat it waits for ever on a host that lost power
const socket = new Subscriber({ receiveHighWaterMark: 100000, heartbeatInterval: 5000 });
if (NEUROMOD_SERVER_KEY) {
  socket.curveServerKey = NEUROMOD_SERVER_KEY;
  socket.curvePublicKey = NEUROMOD_PUBLIC_KEY;
  socket.curveSecretKey = NEUROMOD_SECRET_KEY;
}
socket.subscribe("spikes", "event", "health");
socket.connect(address);

// JSON has neither integers of 64 bits nor binary: numbers where they are exact, else text, and hexadecimal
function plain(key, value) {
  if (typeof value === "bigint") return Number.isSafeInteger(Number(value)) ? Number(value) : String(value);
  return value instanceof Uint8Array ? Buffer.from(value).toString("hex") : value;
}

const next = {};
const lost = {};
let left = Number(count);
for await (const [name, payload] of socket) {
  const topic = name.toString();
  const message = decode(new Uint8Array(payload), { useBigInt64: true }); // seq, tick and sample are uint64
  if (message.v !== 1) throw new Error(`${topic} is not of protocol version 1`);
  lost[topic] ??= 0;
  if (message.seq !== undefined) {
    // a seq that goes back: the daemon was started again
    if (message.seq > next[topic]) lost[topic] += Number(message.seq - next[topic]);
    next[topic] = message.seq + 1n;
  }
  console.log(JSON.stringify({ topic, lost: lost[topic], ...message }, plain));
  if (--left <= 0) break;
}
socket.close();
