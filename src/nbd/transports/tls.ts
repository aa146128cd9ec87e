/**
 * A byte stream that can turn into TLS on the way (NBD_OPT_STARTTLS), over any other byte stream.
 *
 *   plain --startTls--> TLS handshake --> secured
 *   raw stream <-> Duplex <-> TLSSocket <-> sink
 *
 * Before startTls bytes pass as they are. The one who calls it sees to it that nothing is on its
 * way in either direction: what follows is TLS or breaks the connection, so that nobody in between
 * can put plain text in front of what is said in secret.
 *
 * @module
 */

import type { Duplex } from "node:stream";
import type tls from "node:tls";
import { limits } from "../../limits.ts";
import type { ByteSink, ByteStream, StreamEnd } from "../byte_stream.ts";

/** A server's certificate, in PEM. */
export interface ServerTls {
  /** Its chain. */
  cert: string;
  /** Its private key. */
  key: string;
  /** Where given, clients must show a certificate that one of these authorities signed. */
  clientCa?: string;
}

/** What a client trusts and shows, in PEM. */
export interface ClientTls {
  /** The name that the server's certificate must be for. */
  hostname: string;
  /** Authorities that may have signed it; those of the system unless given. */
  ca?: string;
  /** A certificate of the client's own. */
  cert?: string;
  /** Its private key. */
  key?: string;
}

/** A stream that can be secured. */
export interface SecurableStream extends ByteStream {
  /** From now on everything is TLS. */
  startTls(): void;
}

const TLS_MIN = "TLSv1.2";

/** Loaded for the first stream that is to be secured: most isolates have none, and save 2 MB. */
function nodeTls(): typeof tls {
  return globalThis.process.getBuiltinModule("node:tls");
}

/** The server's side of a stream. */
export function securableServer(raw: ByteStream, options: ServerTls): SecurableStream {
  return new TlsStream(raw, (duplex, { onSocket, onError }) => {
    const { cert, key, clientCa } = options;
    const mustVerify = clientCa !== undefined;
    // A bare TLSSocket asks for a certificate but lets any pass: it is a server that judges it.
    const server = nodeTls().createServer({
      cert,
      key,
      minVersion: TLS_MIN,
      requestCert: mustVerify,
      rejectUnauthorized: mustVerify,
      ...(mustVerify ? { ca: clientCa } : {}),
    });
    server.on("secureConnection", (socket) => {
      if (mustVerify && !socket.authorized) onError(new Error("an unknown client certificate"));
      else onSocket(socket);
    });
    server.on("tlsClientError", onError);
    server.emit("connection", duplex);
  });
}

/** The client's side of a stream. */
export function securableClient(raw: ByteStream, options: ClientTls): SecurableStream {
  const { hostname, ca, cert, key } = options;
  return new TlsStream(raw, (socket, { onSocket }) =>
    onSocket(
      nodeTls().connect({
        socket,
        servername: hostname,
        minVersion: TLS_MIN,
        ...(ca === undefined ? {} : { ca }),
        ...(cert === undefined ? {} : { cert }),
        ...(key === undefined ? {} : { key }),
      }),
    ));
}

/** Puts TLS on a duplex. */
type Secure = (
  duplex: Duplex,
  events: { onSocket: (socket: tls.TLSSocket) => void; onError: (error: Error) => void },
) => void;

class TlsStream implements SecurableStream {
  readonly peer: string;
  readonly #raw: ByteStream;
  readonly #secure: Secure;
  #sink: ByteSink | null = null;
  #duplex: Duplex | null = null;
  #socket: tls.TLSSocket | null = null;
  #isPaused = false;
  #isClosed = false;
  #hasEnded = false;
  #rawEnd: StreamEnd | null = null;

  constructor(raw: ByteStream, secure: Secure) {
    this.#raw = raw;
    this.#secure = secure;
    this.peer = raw.peer;
  }

  start(sink: ByteSink): void {
    this.#sink = sink;
    this.#raw.start({
      onData: (bytes) => this.#onRaw(bytes),
      onEnd: (end) => this.#onRawEnd(end),
    });
  }

  startTls(): void {
    const { Duplex } = globalThis.process.getBuiltinModule("node:stream");
    const duplex = new Duplex({
      read: () => this.#raw.resume(),
      write: (chunk: Uint8Array, _encoding, done) => this.#writeRaw(chunk, done),
      destroy: (error, done) => {
        this.#raw.close(error?.message ?? "TLS ended");
        done(error);
      },
    });
    this.#duplex = duplex;
    this.#isPaused = false;
    duplex.on("error", (error) => this.#fail(error));
    duplex.on("close", () => this.#end({ kind: "closed", message: "TLS ended" }));
    this.#secure(duplex, {
      onSocket: (socket) => this.#onSocket(socket),
      onError: (error) => this.#fail(error),
    });
    this.#raw.resume();
  }

  write(bytes: Uint8Array): void | Promise<void> {
    const socket = this.#socket;
    if (this.#duplex === null) return this.#raw.write(bytes);
    if (socket === null) return Promise.reject(new Error("TLS is not there yet"));
    return new Promise((resolve, reject) => {
      if (socket.destroyed) return reject(new Error("the connection is closed"));
      const onClose = () => reject(new Error("the connection is closed"));
      socket.once("close", onClose);
      socket.write(bytes, (error) => {
        socket.off("close", onClose);
        if (error) reject(error);
        else resolve();
      });
    });
  }

  pause(): void {
    if (this.#duplex === null) return this.#raw.pause();
    this.#isPaused = true;
    this.#socket?.pause();
  }

  resume(): void {
    if (this.#duplex === null) return this.#raw.resume();
    if (!this.#isPaused) return;
    this.#isPaused = false;
    this.#socket?.resume();
  }

  close(reason: string): void {
    if (this.#isClosed) return;
    this.#isClosed = true;
    const socket = this.#socket;
    if (socket === null || socket.destroyed) {
      this.#duplex?.destroy();
      return this.#raw.close(reason);
    }
    // A peer that takes nothing any more gets no proper goodbye.
    const timer = setTimeout(() => socket.destroy(), limits.nbdCloseMs);
    socket.once("close", () => {
      clearTimeout(timer);
      this.#raw.close(reason);
    });
    socket.end(() => socket.destroy());
  }

  #onSocket(socket: tls.TLSSocket): void {
    this.#socket = socket;
    socket.on("data", (bytes: Uint8Array) => this.#sink?.onData(bytes));
    socket.on("end", () => {
      if (this.#rawEnd?.kind === "closed") this.#fail(new Error(this.#rawEnd.message));
      else this.#end({ kind: "finished" });
    });
    socket.on("error", (error) => this.#fail(error));
    socket.on("close", () => this.#end({ kind: "closed", message: "TLS ended" }));
  }

  #fail(error: Error): void {
    this.#end({ kind: "closed", message: `TLS: ${error.message}` });
    this.#duplex?.destroy();
  }

  #onRaw(bytes: Uint8Array): boolean {
    if (this.#duplex === null) return this.#sink?.onData(bytes) ?? false;
    if (!this.#duplex.push(bytes.slice())) this.#raw.pause();
    return false;
  }

  #onRawEnd(end: StreamEnd): void {
    if (this.#duplex === null) return this.#end(end);
    this.#rawEnd = end;
    // What came before the end is deciphered and heard first.
    if (end.kind === "finished" || this.#socket !== null) this.#duplex.push(null);
    else this.#duplex.destroy(new Error(end.message));
  }

  #writeRaw(chunk: Uint8Array, done: (error?: Error | null) => void): void {
    try {
      const written = this.#raw.write(chunk);
      if (written instanceof Promise) written.then(() => done(), done);
      else done();
    } catch (error) {
      done(error instanceof Error ? error : new Error(String(error)));
    }
  }

  #end(end: StreamEnd): void {
    if (this.#hasEnded || this.#isClosed && end.kind === "closed") return;
    this.#hasEnded = true;
    this.#sink?.onEnd(end);
  }
}
