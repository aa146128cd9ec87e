import { assert, assertEquals, assertRejects } from "@std/assert";
import { connectNbd } from "../../src/nbd/connect.ts";
import { NbdClient } from "../../src/nbd/client.ts";
import { NbdHandshakeError } from "../../src/nbd/client_handshake.ts";
import { concatBytes } from "../../src/nbd/codec.ts";
import type { TlsMode } from "../../src/nbd/handshake.ts";
import { NbdServer } from "../../src/nbd/server.ts";
import { NbdSession } from "../../src/nbd/session.ts";
import { securableClient, securableServer } from "../../src/nbd/transports/tls.ts";
import { type Certificates, makeCertificates } from "../support/certificates.ts";
import { findProgram, needs } from "../support/clients.ts";
import { settleAll } from "../support/fake_clock.ts";
import { directoryOf, MemoryExport } from "../support/memory_export.ts";
import {
  be,
  CLIENT_FLAGS,
  FedStream,
  go,
  hex,
  metaContext,
  option,
  pattern,
  startSession,
  streamPair,
  toHex,
} from "../support/nbd.ts";

const MiB = 1024 * 1024;
const STARTTLS = 5;

/** A reply to an option, in hexadecimal, its text left out. */
function replyHead(bytes: Uint8Array, optionType: number): number {
  const head = `0003e889 045565a9 ${be(4, optionType)}`;
  assertEquals(toHex(bytes.subarray(0, 12)), head);
  return new DataView(bytes.buffer, bytes.byteOffset).getUint32(12);
}

/** A session whose stream says what becomes of it. */
function start(tlsMode: TlsMode): { stream: FedStream & { secured: number } } {
  const stream = Object.assign(new FedStream(), {
    secured: 0,
    startTls() {
      this.secured++;
    },
  });
  const directory = directoryOf(new MemoryExport(pattern(MiB)));
  new NbdSession(stream, { directory, tlsMode }).start();
  stream.feed(CLIENT_FLAGS);
  stream.take();
  return { stream };
}

const POLICY = 0x80000002;
const INVALID = 0x80000003;
const TLS_REQD = 0x80000005;
const UNSUP = 0x80000001;

Deno.test("Handshake refuses STARTTLS where there is none, and STARTTLS with data", () => {
  const { stream } = startSession(new MemoryExport(pattern(512)));
  stream.feed(CLIENT_FLAGS);
  stream.take();
  stream.feed(option(STARTTLS));
  assertEquals(replyHead(stream.take(), STARTTLS), POLICY);
  stream.feed(option(STARTTLS, hex("00")));
  assertEquals(replyHead(stream.take(), STARTTLS), INVALID);
  stream.feed(go());
  assertEquals(replyHead(stream.take(), 7), 3);
  stream.finish("over");
});

Deno.test("Handshake answers everything with TLS_REQD where TLS is required", () => {
  const { stream } = start("required");
  const others = [go(), go(6), option(3), option(8), option(11), metaContext(9, ""), option(99)];
  for (const bytes of others) {
    stream.feed(bytes);
    const type = new DataView(bytes.buffer).getUint32(8);
    assertEquals(replyHead(stream.take(), type), TLS_REQD, `option ${type}`);
  }
  stream.feed(option(STARTTLS, hex("0000")));
  assertEquals(replyHead(stream.take(), STARTTLS), INVALID);
  assertEquals(stream.secured, 0);
  stream.feed(option(2));
  assertEquals(replyHead(stream.take(), 2), 1);
  assert(stream.closedWith !== null);

  const named = start("required").stream;
  named.feed(option(1));
  assertEquals(named.take().length, 0);
  assertEquals(named.closedWith, "NBD_OPT_EXPORT_NAME without TLS");
});

Deno.test("Handshake forgets what was agreed on before TLS, and what came behind STARTTLS", () => {
  for (const mode of ["allowed", "required"] as const) {
    const { stream } = start(mode);
    if (mode === "allowed") {
      stream.feed(concatBytes([option(8), metaContext(10, "", "base:allocation")]));
      stream.take();
    }
    stream.feed(concatBytes([option(STARTTLS), option(3), go()]));
    assertEquals(toHex(stream.take()), `0003e889 045565a9 ${be(4, STARTTLS)} 00000001 00000000`);
    assertEquals(stream.secured, 1);
    // Structured replies are off again: a selection of contexts is refused.
    stream.feed(metaContext(10, "", "base:allocation"));
    assertEquals(replyHead(stream.take(), 10), INVALID);
    stream.feed(option(STARTTLS));
    assertEquals(replyHead(stream.take(), STARTTLS), INVALID);
    stream.feed(option(99));
    assertEquals(replyHead(stream.take(), 99), UNSUP);
    stream.feed(go());
    assertEquals(replyHead(stream.take(), 7), 3);
    stream.finish("over");
  }
});

Deno.test("NbdSession secures the stream only once its answers are written", async () => {
  const { stream } = start("allowed");
  stream.isHolding = true;
  stream.feed(option(99));
  stream.feed(option(STARTTLS));
  assertEquals(stream.secured, 0);
  assert(stream.isPaused);
  stream.feed(go());
  stream.isHolding = false;
  stream.release();
  await settleAll();
  assertEquals(stream.secured, 1);
  const sent = stream.take();
  assertEquals(replyHead(sent, 99), UNSUP);
  assertEquals(replyHead(sent.subarray(-20), STARTTLS), 1);
  stream.finish("over");
});

Deno.test("NbdClient refuses plain text behind the answer to STARTTLS", async () => {
  const stream = Object.assign(new FedStream(), { startTls() {} });
  const connecting = NbdClient.connect(stream, { isTls: true });
  const refused = assertRejects(() => connecting, NbdHandshakeError, "plain text");
  stream.feed(hex("'NBDMAGIC' 'IHAVEOPT' 0003"));
  await settleAll();
  const ack = (type: number) => hex("0003e889 045565a9", be(4, type), "00000001 00000000");
  stream.feed(concatBytes([ack(STARTTLS), ack(11)]));
  await refused;
});

Deno.test("NbdClient refuses to go on without TLS", async () => {
  const [ours, theirs] = streamPair();
  new NbdSession(theirs, { directory: directoryOf(new MemoryExport(pattern(512))) }).start();
  await assertRejects(
    () => NbdClient.connect(ours, { isTls: true }),
    NbdHandshakeError,
    "this server has no certificate",
  );
});

async function exercise(client: NbdClient, exported: MemoryExport): Promise<void> {
  assertEquals(await client.read(0, 3 * MiB + 5), exported.bytes.slice(0, 3 * MiB + 5));
  await client.write(777, pattern(2 * MiB, 4));
  assertEquals(await client.read(777, 2 * MiB), pattern(2 * MiB, 4));
  await client.flush();
  await client.close();
}

Deno.test({
  name: "TLS carries sessions over any stream",
  ...needs("openssl"),
  fn: async () => {
    await using certificates = await makeCertificates();
    const certificate = serverTls(certificates);
    const exported = new MemoryExport(pattern(4 * MiB));
    const [ours, theirs] = streamPair();
    const session = new NbdSession(securableServer(theirs, certificate), {
      directory: directoryOf(exported),
      tlsMode: "required",
    });
    session.start();
    const stream = securableClient(ours, {
      hostname: "localhost",
      ca: certificates.read("ca-cert.pem"),
    });
    await exercise(await NbdClient.connect(stream, { isTls: true }), exported);
    assertEquals(await session.closed, "the client disconnected");
  },
});

function serverTls(certificates: Certificates, mustVerify = false) {
  return {
    cert: certificates.read("server-cert.pem"),
    key: certificates.read("server-key.pem"),
    ...(mustVerify ? { clientCa: certificates.read("ca-cert.pem") } : {}),
  };
}

Deno.test({
  name: "NbdServer with TLS lets in who trusts it and whom it trusts",
  ...needs("openssl"),
  fn: async () => {
    await using certificates = await makeCertificates();
    await using foreign = await makeCertificates();
    const exported = new MemoryExport(pattern(4 * MiB));
    const server = new NbdServer({ directory: directoryOf(exported) });
    const listen = (isRequired: boolean, mustVerify: boolean) =>
      server.listenTcp({ host: "127.0.0.1", port: 0 }, {
        certificate: serverTls(certificates, mustVerify),
        isRequired,
      });
    const ca = certificates.read("ca-cert.pem");
    const own = (from: Certificates) => ({
      cert: from.read("client-cert.pem"),
      key: from.read("client-key.pem"),
    });
    const open = async (port: number, tls?: Parameters<typeof securableClient>[1]) => {
      const address = { type: "inet", host: "127.0.0.1", port } as const;
      return await NbdClient.connect(await connectNbd(address, { tls }), {
        isTls: tls !== undefined,
      });
    };
    const hostname = "localhost";
    try {
      const { port: allowed } = listen(false, false);
      await exercise(await open(allowed), exported);
      await exercise(await open(allowed, { hostname, ca }), exported);
      await assertRejects(() => open(allowed, { hostname: "elsewhere.test", ca }));
      await assertRejects(() => open(allowed, { hostname, ca: foreign.read("ca-cert.pem") }));
      const { port: required } = listen(true, false);
      await assertRejects(() => open(required), NbdHandshakeError, "STARTTLS first");
      await exercise(await open(required, { hostname, ca }), exported);
      const { port: verified } = listen(true, true);
      await exercise(await open(verified, { hostname, ca, ...own(certificates) }), exported);
      await assertRejects(() => open(verified, { hostname, ca }));
      await assertRejects(() => open(verified, { hostname, ca, ...own(foreign) }));
    } finally {
      await server.close();
    }
  },
});

for (const mustVerify of [false, true]) {
  Deno.test({
    name: `libnbd and qemu-img read by TLS, ${mustVerify ? "with" : "without"} a certificate`,
    ...needs("openssl", "nbdcopy", "nbdinfo", "qemu-img"),
    fn: async () => {
      await using certificates = await makeCertificates();
      const { directory } = certificates;
      if (!mustVerify) await Deno.remove(`${directory}/client-key.pem`);
      const exported = new MemoryExport(pattern(4 * MiB), { isReadOnly: true });
      const server = new NbdServer({ directory: directoryOf(exported) });
      const { port } = server.listenTcp({ host: "127.0.0.1", port: 0 }, {
        certificate: serverTls(certificates, mustVerify),
        isRequired: true,
      });
      const run = async (program: string, ...args: string[]) => {
        const { code, stdout, stderr } = await new Deno.Command(findProgram(program) ?? program, {
          args,
        }).output();
        const text = new TextDecoder().decode(stdout);
        assertEquals(code, 0, `${program}: ${text}${new TextDecoder().decode(stderr)}`);
        return text;
      };
      try {
        const uri = `nbds://localhost:${port}/mem?tls-certificates=${directory}`;
        assertEquals((await run("nbdinfo", "--size", uri)).trim(), `${4 * MiB}`);
        await run("nbdcopy", uri, `${directory}/copy`);
        assertEquals(await Deno.readFile(`${directory}/copy`), exported.bytes);
        await run(
          "qemu-img",
          ...["convert", "--object", `tls-creds-x509,id=tls,dir=${directory},endpoint=client`],
          "--image-opts",
          `driver=nbd,server.type=inet,server.host=localhost,server.port=${port},tls-creds=tls`,
          ...["-O", "raw", `${directory}/converted`],
        );
        assertEquals(await Deno.readFile(`${directory}/converted`), exported.bytes);
      } finally {
        await server.close();
      }
    },
  });
}
