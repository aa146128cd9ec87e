/**
 * The part of the compiler's interface that build.ts uses. The package's own declarations define
 * global types (u32, ...) that would collide with assembly/types.d.ts.
 */
export interface CompilerHost {
  /** Where the compiler says what was asked of it. */
  stdout: { write(chunk: string | Uint8Array): void };
  /** Where the compiler says what is wrong with the source. */
  stderr: { write(chunk: string | Uint8Array): void };
  /** A source file's text, null where there is none. */
  readFile(name: string, baseDirectory: string): string | null;
  /** Takes a product: wasm as bytes, text as a string. */
  writeFile(name: string, contents: string | Uint8Array, baseDirectory: string): void;
  /** The names of a folder's files, null where there is none. */
  listFiles(directory: string, baseDirectory: string): string[] | null;
}

/** The compiler, as its command line: `error` is null where all went well. */
declare const asc: {
  main(options: string[], host: CompilerHost): Promise<{ error: Error | null }>;
};
export default asc;
