/* Prints what a neuromod daemon publishes, one JSON line a message: subscriber [N [ADDRESS]]. README.md tells more. */
#include <inttypes.h>
#include <math.h>
#include <msgpack.h>
#include <zmq.h>

static const char *const TOPICS[] = {"spikes", "event", "health"};
static const char *const FIELDS[] = {"seq", "tick", "sample", "t_sample", "t_tick", "spikes", "flags", "t", "name"};
static const char *const CURVE[] = {"NEUROMOD_SERVER_KEY", "NEUROMOD_PUBLIC_KEY", "NEUROMOD_SECRET_KEY"};
static const int OPTIONS[] = {ZMQ_CURVE_SERVERKEY, ZMQ_CURVE_PUBLICKEY, ZMQ_CURVE_SECRETKEY};
static int fail(const char *what, const char *why) { return fprintf(stderr, "subscriber: %s: %s\n", what, why), 1; }
static msgpack_object get(msgpack_object map, const char *name) { /* nil where there is none */
    for (uint32_t i = 0; map.type == MSGPACK_OBJECT_MAP && i < map.via.map.size; i++) {
        msgpack_object key = map.via.map.ptr[i].key;
        if (key.type == MSGPACK_OBJECT_STR && key.via.str.size == strlen(name) && !memcmp(key.via.str.ptr, name, key.via.str.size))
            return map.via.map.ptr[i].val;
    }
    return (msgpack_object){.type = MSGPACK_OBJECT_NIL};
}
static void print(const char *name, msgpack_object o) {
    int is_binary = o.type == MSGPACK_OBJECT_BIN; /* goes out in hexadecimal; text and binary lie alike in the union */
    printf(", \"%s\": ", name);
    if (o.type == MSGPACK_OBJECT_POSITIVE_INTEGER) printf("%" PRIu64, o.via.u64);
    else if (o.type == MSGPACK_OBJECT_FLOAT && isfinite(o.via.f64)) printf("%.17g", o.via.f64);
    else if ((is_binary || o.type == MSGPACK_OBJECT_STR) && putchar('"')) {
        for (const unsigned char *c = (const void *)o.via.bin.ptr, *end = c + o.via.bin.size; c < end; c++)
            printf(is_binary ? "%02x" : *c < ' ' || *c == '"' || *c == '\\' ? "\\u%04x" : "%c", *c);
        putchar('"');
    } else printf("null"); /* JSON has no NaN */
}
int main(int argc, char **argv) {
    const char *address = argc > 2 ? argv[2] : "tcp://127.0.0.1:5556";
    void *socket = zmq_socket(zmq_ctx_new(), ZMQ_SUB);
    zmq_setsockopt(socket, ZMQ_HEARTBEAT_IVL, &(int){5000}, sizeof(int)); /* else one without power is waited for */
    zmq_setsockopt(socket, ZMQ_RCVHWM, &(int){100000}, sizeof(int)); /* libzmq drops what waits beyond it, silently */
    for (int i = 0; i < 3; i++) {
        const char *key = getenv(CURVE[i]);
        if (key && zmq_setsockopt(socket, OPTIONS[i], key, strlen(key))) return fail(CURVE[i], "is no key in Z85");
        zmq_setsockopt(socket, ZMQ_SUBSCRIBE, TOPICS[i], strlen(TOPICS[i]));
    }
    if (zmq_connect(socket, address)) return fail(address, zmq_strerror(errno));
    uint64_t next[3] = {0}, lost[3] = {0}; msgpack_unpacked m = {0}; /* freed by each unpacking that follows */
    for (long left = argc > 1 ? atol(argv[1]) : 10; left > 0; left--) {
        static char topic[16], payload[1 << 20];
        int n = zmq_recv(socket, topic, sizeof topic, 0), size = zmq_recv(socket, payload, sizeof payload, 0), t = 0;
        while (t < 2 && (n != (int)strlen(TOPICS[t]) || memcmp(topic, TOPICS[t], n))) t++;
        if (size < 0 || size > (int)sizeof payload || msgpack_unpack_next(&m, payload, size, NULL) != MSGPACK_UNPACK_SUCCESS)
            return fail(TOPICS[t], "is not a whole msgpack value");
        msgpack_object v = get(m.data, "v"), seq = get(m.data, "seq");
        if (v.type != MSGPACK_OBJECT_POSITIVE_INTEGER || v.via.u64 != 1) return fail(TOPICS[t], "is not of version 1");
        if (seq.type == MSGPACK_OBJECT_POSITIVE_INTEGER) { /* one that goes back: the daemon was started again */
            lost[t] += next[t] && seq.via.u64 > next[t] ? seq.via.u64 - next[t] : 0;
            next[t] = seq.via.u64 + 1;
        }
        printf("{\"topic\": \"%s\", \"lost\": %" PRIu64, TOPICS[t], lost[t]);
        for (size_t f = 0; f < sizeof FIELDS / sizeof *FIELDS; f++) print(FIELDS[f], get(m.data, FIELDS[f]));
        puts("}"), fflush(stdout);
    }
}
