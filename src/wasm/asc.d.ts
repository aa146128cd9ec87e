/**
 * The part of the compiler's interface that build.ts uses. The package's own declarations define
 * global types (u32, ...) that would collide with assembly/types.d.ts.
 */
export interface CompilerHost {
  stdout: { write(chunk: string | Uint8Array): void };
  stderr: { write(chunk: string | Uint8Array): void };
  readFile(name: string, baseDirectory: string): string | null;
  writeFile(name: string, contents: string | Uint8Array, baseDirectory: string): void;
  listFiles(directory: string, baseDirectory: string): string[] | null;
}

declare const asc: {
  main(options: string[], host: CompilerHost): Promise<{ error: Error | null }>;
};
export default asc;
