/**
 * AssemblyScript's integer types, for the files that TypeScript looks at too: layout.ts, whose type
 * is the type of what the host reads from the compiled module (readHartLayout in hart.ts, which
 * makes numbers of u64 constants too).
 */
declare type u32 = number;
declare type u64 = number;
