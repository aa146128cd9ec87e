/**
 * A conversation with a guest: what its console printed so far, waiting for more, and typing.
 *
 * @module
 */

/** The two ends of a console, whatever carries them. */
export interface ConsoleEnds {
  /** What the guest printed and goes on to print, until it is cancelled. */
  output(): Promise<ReadableStream<Uint8Array<ArrayBuffer>>>;
  /** Types bytes; resolves when the guest's console took them. */
  input(bytes: Uint8Array<ArrayBuffer>): Promise<void>;
}

/** See the module's description. Disposing of it stops listening. */
export class ConsoleDialogue implements AsyncDisposable {
  /** Everything that was printed. */
  text = "";
  #seen = 0;
  #wake: (() => void) | undefined;
  #isOver = false;
  readonly #ends: ConsoleEnds;
  readonly #reader: Promise<ReadableStreamDefaultReader<string>>;
  readonly #finished: Promise<void>;

  /** Begins to listen at once. That it can't is written to `text`. */
  constructor(ends: ConsoleEnds) {
    this.#ends = ends;
    this.#reader = ends.output().then((stream) =>
      stream.pipeThrough(new TextDecoderStream()).getReader()
    );
    this.#finished = this.#read();
  }

  /** Waits until `pattern` appears in what was not yet waited for; the match. */
  async waitFor(pattern: RegExp): Promise<RegExpExecArray> {
    for (;;) {
      const match = pattern.exec(this.text.slice(this.#seen));
      if (match) {
        this.#seen += match.index + match[0].length;
        return match;
      }
      if (this.#isOver) throw new Error(`the console ended without ${pattern}:\n${this.text}`);
      await new Promise<void>((resolve) => this.#wake = resolve);
    }
  }

  /** Types `text`. */
  async type(text: string): Promise<void> {
    await this.#ends.input(new TextEncoder().encode(text));
  }

  /** Runs a command of the demo guest; what it printed. Throws where it failed. */
  async demo(command: string): Promise<string> {
    await this.type(`${command}\r`);
    const [all, output, result] = await this.waitFor(/^[^]*?\r?\n([^]*?)(ok|failed)\r\ndemo> /);
    if (result === "failed") throw new Error(all);
    return output ?? "";
  }

  /** Runs a command of a Unix shell; what it printed. Throws where it failed. */
  async shell(command: string): Promise<string> {
    await this.type(`${command}; echo "<$?>"\n`);
    const [, output, status] = await this.waitFor(/^[^]*?\r\n([^]*?)<(\d+)>\r\n/);
    if (status !== "0") throw new Error(`${command}: ${output}`);
    return output ?? "";
  }

  /** Stops listening; resolves when nothing reads any more. */
  async [Symbol.asyncDispose](): Promise<void> {
    // Cancelled, not aborted by a signal: this runtime forgets the signal of a fetch whose request
    // was collected as garbage.
    await this.#reader.then((reader) => reader.cancel()).catch(() => {});
    await this.#finished;
  }

  async #read(): Promise<void> {
    try {
      const reader = await this.#reader;
      for (;;) {
        const { done, value } = await reader.read();
        if (done) break;
        this.text += value;
        this.#wake?.();
      }
    } catch (error) {
      this.text += `\n[console: ${error}]`;
    } finally {
      this.#isOver = true;
      this.#wake?.();
    }
  }
}
