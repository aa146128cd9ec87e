/**
 * Debian's Chromium without a window and without a word to anybody but the test.
 *
 * @module
 */

import { type BrowserContext, chromium } from "playwright-core";
import { findProgram } from "./clients.ts";

/** A running browser with a profile of its own; disposing of it ends it and removes the profile. */
export class TestBrowser implements AsyncDisposable {
  private constructor(readonly context: BrowserContext, readonly profile: string) {}

  /** Starts one. */
  static async start(): Promise<TestBrowser> {
    const profile = await Deno.makeTempDir();
    const context = await chromium.launchPersistentContext(profile, {
      executablePath: findProgram("chromium") ?? "chromium",
      headless: true,
      args: [
        "--no-sandbox",
        "--disable-gpu",
        "--disable-quic",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
      ],
    });
    return new TestBrowser(context, profile);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.context.close();
    await Deno.remove(this.profile, { recursive: true });
  }
}
