/**
 * A client of the service's HTTP API, for commands.
 *
 * @module
 */

import { join } from "node:path";
import { defaultDataPath } from "../config.ts";

/** The service said no. */
export class ClientError extends Error {
  /** What stands before the message when it is printed. */
  override readonly name = "ClientError";
  /** `code` of the problem. */
  constructor(readonly code: string, message: string) {
    super(message);
  }
}

/** Where the service is and what opens it. */
export interface ClientOptions {
  /** http://HOST:PORT, without a final `/`. */
  url: string;
  /** Sent with every request; null: nothing is sent. */
  token: string | null;
}

/** The API of one service. */
export class Client {
  readonly #options: ClientOptions;

  /** Sends nothing yet: the first request shows whether a service is there. */
  constructor(options: ClientOptions) {
    this.#options = options;
  }

  /** A request; throws ClientError unless it succeeds. */
  async request(method: string, path: string, init: RequestInit = {}): Promise<Response> {
    const { url } = this.#options;
    let response: Response;
    try {
      response = await fetch(`${url}${path}`, {
        ...init,
        method,
        headers: { ...this.#headers(), ...init.headers },
      });
    } catch (error) {
      throw new ClientError(
        "unreachable",
        `no service answers at ${url} (start one with: ovis serve): ${(error as Error).message}`,
      );
    }
    if (response.ok) return response;
    const text = await response.text();
    throw readProblem(response, text);
  }

  /** A call with JSON both ways. */
  async call<T>(method: string, path: string, body?: unknown): Promise<T> {
    const init = body === undefined ? {} : { body: JSON.stringify(body) };
    const response = await this.request(method, path, init);
    const text = await response.text();
    return (text === "" ? undefined : JSON.parse(text)) as T;
  }

  /** All items of a list. */
  async list<T>(path: string): Promise<T[]> {
    const items: T[] = [];
    let cursor: string | null = null;
    do {
      const query: string = cursor === null ? "" : `?cursor=${cursor}`;
      const page = await this.call<{ items: T[]; nextCursor: string | null }>("GET", path + query);
      items.push(...page.items);
      cursor = page.nextCursor;
    } while (cursor !== null);
    return items;
  }

  /** A WebSocket. */
  openWebSocket(path: string): WebSocket {
    const url = `${this.#options.url.replace(/^http/, "ws")}${path}`;
    // Deno takes headers here; the types in use are the browsers'.
    const options = { headers: this.#headers() } as unknown as string[];
    const socket = new WebSocket(url, options);
    socket.binaryType = "arraybuffer";
    return socket;
  }

  #headers(): Record<string, string> {
    const { token } = this.#options;
    return token === null ? {} : { authorization: `Bearer ${token}` };
  }
}

/** The client that flags, environment and the data folder's token file describe. */
export async function openClient(options: { url?: string; token?: string }): Promise<Client> {
  const environment = (name: string) => Deno.env.get(name);
  const url = options.url ?? environment("OVIS_URL") ?? "http://127.0.0.1:8080";
  const token = options.token ?? environment("OVIS_TOKEN") ??
    await readToken(environment("OVIS_DATA") ?? defaultDataPath(environment));
  return new Client({ url: url.replace(/\/$/, ""), token });
}

async function readToken(dataPath: string): Promise<string | null> {
  try {
    return (await Deno.readTextFile(join(dataPath, "token"))).trim();
  } catch {
    // No folder of ours, or not for us to read: the service says whether a token is needed.
    return null;
  }
}

function readProblem(response: Response, text: string): ClientError {
  try {
    const { code, title, detail } = JSON.parse(text);
    return new ClientError(String(code), `${title}: ${detail}`);
  } catch {
    return new ClientError("unknown", `${response.status} ${response.statusText}`);
  }
}
