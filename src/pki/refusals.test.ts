// What must not be believed, and why: one line for each way in which a signature, a certificate, a chain or a revocation
// can be wrong. Every line has the words by which it is refused, so that no case passes for another's reason.
import { afterAll, beforeAll, expect, test } from "bun:test";
import { Authority, CA, EC, LEAF } from "../../test/ca.ts";
import { PrivateKey } from "./key.ts";
import { REVOCATION_MAX } from "./revocation.ts";
import { Refused, type Revocation, SIGNATURE_MAX, type Trust, verify } from "./verify.ts";

const ca = new Authority();
afterAll(() => ca[Symbol.dispose]());

const DATA = Buffer.from('name: "guest"\nversion: 1\n');
const RSA = ["-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048"];
const PSS = ["-sigopt", "rsa_padding_mode:pss", "-sigopt", "rsa_pss_saltlen:-1"];

beforeAll(() => {
  ca.issue("root", { extensions: CA });
  ca.issue("sub", { by: "root", extensions: CA });
  ca.issue("good", { by: "sub" });
  ca.issue("rsa", { by: "sub", key: RSA });
}, 60_000);

interface Case {
  readonly data?: Uint8Array;
  readonly signature?: Uint8Array;
  readonly bundle?: Uint8Array;
  readonly roots?: readonly Uint8Array[];
  readonly revocation?: readonly Revocation[];
  readonly ignoreTime?: boolean;
}

/** "accepted", or what is said instead. Without more: the good signer, signed by the good intermediate. */
function judged(c: Case = {}): string {
  const trust: Trust = {
    software: (c.roots ?? [ca.read("root.pem")]).map((pem, i) => ({ name: `root ${i}`, pem })),
    local: [],
    revocation: c.revocation ?? [],
  };
  const bundle = c.bundle ?? chain("good", "sub");
  try {
    verify(c.data ?? DATA, c.signature ?? signed("good"), bundle, trust, {
      ignoreTime: c.ignoreTime ?? false,
    });
    return "accepted";
  } catch (e) {
    if (e instanceof Refused) return `${e.part}: ${e.message}`;
    return `error: ${(e as Error).message}`;
  }
}
const chain = (...names: string[]): Buffer => Buffer.concat(names.map((n) => ca.read(`${n}.pem`)));
function signed(name: string): Uint8Array {
  using key = PrivateKey.read(name, ca.read(`${name}.key`));
  return key.sign(DATA);
}
const flip = (bytes: Uint8Array, at: number): Uint8Array => {
  const copy = Uint8Array.from(bytes);
  copy[at < 0 ? copy.length + at : at]! ^= 1;
  return copy;
};
/** A signer by this name, and the judgement on it. */
const signer = (name: string, how: Parameters<Authority["issue"]>[1], ...over: string[]): string => {
  ca.issue(name, { by: "sub", ...how });
  return judged({ bundle: chain(name, ...(over.length ? over : ["sub"])), signature: signed(name) });
};
const MISMATCH = "it does not match the data";
const rsa = (signature: Uint8Array): Case => ({ bundle: chain("rsa", "sub"), signature });
const tbs = (pem: Buffer, at: number): Buffer => {
  const der = Buffer.from(pem.toString().replace(/-----[^-]+-----|\s/g, ""), "base64");
  return Buffer.from(
    `-----BEGIN CERTIFICATE-----\n${Buffer.from(flip(der, at)).toString("base64").replace(/.{64}/g, "$&\n")}\n-----END CERTIFICATE-----\n`,
  );
};
const crl = (bytes: Uint8Array): Revocation[] => [{ name: "list.crl", kind: "crl", bytes }];
const ocsp = (bytes: Uint8Array): Revocation[] => [{ name: "answer.ocsp", kind: "ocsp", bytes }];

test("the good ones, so that the others mean something", () => {
  expect(judged()).toBe("accepted");
  expect(judged({ bundle: chain("good", "root", "sub") })).toBe("accepted");
  expect(judged(rsa(signed("rsa")))).toBe("accepted");
  expect(judged(rsa(ca.sign("rsa", DATA)))).toBe("accepted"); // PKCS #1 v1.5, for compatibility
  expect(judged({ revocation: crl(ca.crl("sub", [])) })).toBe("accepted");
});

const CASES: [what: string, words: string, of: () => string][] = [
  // the data and the signature
  ["a flipped first byte of the data", MISMATCH, () => judged({ data: flip(DATA, 0) })],
  ["a flipped last byte of the data", MISMATCH, () => judged({ data: flip(DATA, -1) })],
  ["data that is longer", MISMATCH, () => judged({ data: Buffer.concat([DATA, Buffer.from("\n")]) })],
  ["data that is shorter", MISMATCH, () => judged({ data: DATA.subarray(1) })],
  ["no data", MISMATCH, () => judged({ data: new Uint8Array() })],
  ["a flipped first byte of the signature", MISMATCH, () => judged({ signature: flip(signed("good"), 0) })],
  ["a flipped last byte of the signature", MISMATCH, () => judged({ signature: flip(signed("good"), -1) })],
  ["a truncated signature", MISMATCH, () => judged({ signature: signed("good").subarray(0, 20) })],
  [
    "a longer signature",
    MISMATCH,
    () => judged({ signature: Buffer.concat([signed("good"), Buffer.alloc(1)]) }),
  ],
  ["no signature", "it is empty", () => judged({ signature: new Uint8Array() })],
  [
    "an oversized signature",
    `at most ${SIGNATURE_MAX} are read`,
    () => judged({ signature: new Uint8Array(SIGNATURE_MAX + 1) }),
  ],
  ["a signature of zeros", MISMATCH, () => judged({ signature: new Uint8Array(71) })],
  [
    "a signature in base64",
    MISMATCH,
    () => judged({ signature: Buffer.from(Buffer.from(signed("good")).toString("base64")) }),
  ],
  ["another signer's signature", MISMATCH, () => judged({ signature: signed("rsa") })],
  ["a signature over other data", MISMATCH, () => judged({ signature: ca.sign("good", Buffer.from("x")) })],
  ["RSA: a flipped byte", MISMATCH, () => judged(rsa(flip(signed("rsa"), 100)))],
  ["RSA: a truncated signature", MISMATCH, () => judged(rsa(signed("rsa").subarray(0, 255)))],
  [
    "RSA: PSS with the longest salt",
    MISMATCH,
    () => judged(rsa(ca.sign("rsa", DATA, ...PSS.slice(0, 2), "-sigopt", "rsa_pss_saltlen:-3"))),
  ],
  [
    "RSA: PSS without salt",
    MISMATCH,
    () => judged(rsa(ca.sign("rsa", DATA, ...PSS.slice(0, 2), "-sigopt", "rsa_pss_saltlen:0"))),
  ],
  [
    "RSA: PSS with another mask",
    MISMATCH,
    () => judged(rsa(ca.sign("rsa", DATA, ...PSS, "-sigopt", "rsa_mgf1_md:sha256"))),
  ],
  ["RSA: PSS over SHA-256", MISMATCH, () => judged(rsa(ca.sign("rsa", DATA, ...PSS, "-sha256")))],
  ["RSA: PKCS #1 over SHA-256", MISMATCH, () => judged(rsa(ca.sign("rsa", DATA, "-sha256")))],
  ["RSA: PKCS #1 over SHA-1", MISMATCH, () => judged(rsa(ca.sign("rsa", DATA, "-sha1")))],
  ["ECDSA over SHA-256", MISMATCH, () => judged({ signature: ca.sign("good", DATA, "-sha256") })],

  // the file of certificates
  ["no certificate", "no certificate in it", () => judged({ bundle: new Uint8Array() })],
  ["text", "no certificate in it", () => judged({ bundle: Buffer.from("hello\n") })],
  ["a private key instead", "no certificate in it", () => judged({ bundle: ca.read("good.key") })],
  [
    "DER instead of PEM",
    "no certificate in it",
    () => judged({ bundle: ca.openssl("x509", "-in", "good.pem", "-outform", "DER") }),
  ],
  ["PEM that breaks off", "cannot be read", () => judged({ bundle: ca.read("good.pem").subarray(0, 200) })],
  [
    "PEM with bad base64",
    "cannot be read",
    () =>
      judged({
        bundle: Buffer.from(
          ca
            .read("good.pem")
            .toString()
            .replace(/\n[A-Za-z]/, "\n*"),
        ),
      }),
  ],
  [
    "PEM with another thing in it",
    "cannot be read",
    () => judged({ bundle: Buffer.from("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n") }),
  ],
  [
    "seventeen certificates",
    "more than 16 certificates",
    () => judged({ bundle: Buffer.concat(Array.from({ length: 17 }, () => ca.read("good.pem"))) }),
  ],
  [
    "an oversized file",
    "at most 262144 are read",
    () => judged({ bundle: Buffer.concat([chain("good", "sub"), Buffer.alloc(262_144, "\n")]) }),
  ],
  [
    "the intermediate before the signer",
    "key usage does not include digitalSignature",
    () => judged({ bundle: chain("sub", "good") }),
  ],

  // the chain
  ["no intermediate", "unable to get local issuer certificate", () => judged({ bundle: chain("good") })],
  ["no root on this device", "no root certificate to compare with", () => judged({ roots: [] })],
  [
    "another root",
    "unable to get local issuer certificate",
    () => judged({ roots: [ca.issue("stranger", { extensions: CA })] }),
  ],
  [
    "another root by the same name",
    "certificate 2 of the chain",
    () => judged({ roots: [ca.issue("twin", { cn: "root", extensions: CA })] }),
  ],
  [
    "a root that only the sender knows",
    "self-signed certificate",
    () => {
      ca.issue("lonely", { extensions: CA });
      return signer("under", { by: "lonely" }, "lonely");
    },
  ],
  ["a signer by itself", "self-signed certificate", () => signer("alone", { by: "alone" }, "alone")],
  [
    "an intermediate as the root",
    "unable to get issuer certificate",
    () => judged({ roots: [ca.read("sub.pem")] }),
  ],
  [
    "a changed byte in the signer",
    "certificate 1 of the chain",
    () => judged({ bundle: Buffer.concat([tbs(ca.read("good.pem"), 40), ca.read("sub.pem")]) }),
  ],
  [
    "a changed signature of the signer's certificate",
    "certificate signature failure",
    () => judged({ bundle: Buffer.concat([tbs(ca.read("good.pem"), -3), ca.read("sub.pem")]) }),
  ],
  [
    "a changed signature of the intermediate",
    "certificate signature failure",
    () => judged({ bundle: Buffer.concat([ca.read("good.pem"), tbs(ca.read("sub.pem"), -3)]) }),
  ],
  [
    "an intermediate that is no CA",
    "invalid CA certificate",
    () => {
      ca.issue("nosub", { by: "root", extensions: LEAF });
      return signer("below", { by: "nosub" }, "nosub");
    },
  ],
  [
    "an intermediate that may not sign certificates",
    "certificate 2 of the chain",
    () => {
      ca.issue("crlonly", {
        by: "root",
        extensions: ["basicConstraints=critical,CA:TRUE", "keyUsage=critical,cRLSign"],
      });
      return signer("beneath", { by: "crlonly" }, "crlonly");
    },
  ],
  [
    "a longer path than allowed",
    "path length constraint exceeded",
    () => {
      ca.issue("short", { by: "root", extensions: ["basicConstraints=critical,CA:TRUE,pathlen:0", CA[1]!] });
      ca.issue("more", { by: "short", extensions: CA });
      return signer("deep", { by: "more" }, "more", "short");
    },
  ],
  [
    "a name that is excluded",
    "excluded subtree violation",
    () => {
      ca.issue("named", {
        by: "root",
        extensions: [...CA, "nameConstraints=critical,excluded;DNS:example.org"],
      });
      return signer(
        "web",
        { by: "named", extensions: [...LEAF, "subjectAltName=DNS:www.example.org"] },
        "named",
      );
    },
  ],

  // times
  ["an expired signer", "certificate has expired on", () => signer("old", { from: -9, to: -1 })],
  ["a signer of tomorrow", "certificate is not yet valid before", () => signer("young", { from: 1, to: 9 })],
  [
    "an expired intermediate",
    "certificate 2 of the chain (CN=oldsub): certificate has expired",
    () => {
      ca.issue("oldsub", { by: "root", from: -9, to: -1, extensions: CA });
      return signer("heir", { by: "oldsub" }, "oldsub");
    },
  ],
  [
    "an expired root",
    "certificate has expired",
    () => {
      ca.issue("oldroot", { from: -9, to: -1, extensions: CA });
      ca.issue("late", { by: "oldroot" });
      return judged({ bundle: chain("late"), signature: signed("late"), roots: [ca.read("oldroot.pem")] });
    },
  ],

  // uses and strengths
  [
    "a key for encryption only",
    "key usage does not include digitalSignature",
    () => signer("enc", { extensions: [LEAF[0]!, "keyUsage=critical,keyEncipherment"] }),
  ],
  [
    "a server's certificate",
    "extended key usage does not include codeSigning",
    () => signer("server", { extensions: [...LEAF, "extendedKeyUsage=serverAuth"] }),
  ],
  [
    "a critical extension that nobody knows",
    "unhandled critical extension",
    () => signer("odd", { extensions: [...LEAF, "1.2.3.4=critical,ASN1:UTF8String:x"] }),
  ],
  [
    "an RSA key of 1024 bits",
    "EE certificate key too weak",
    () => {
      ca.issue("weak", { by: "sub", key: ["-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:1024"] });
      return judged({ bundle: chain("weak", "sub"), signature: ca.sign("weak", DATA) });
    },
  ],
  [
    "an intermediate with a weak key",
    "CA certificate key too weak",
    () => {
      ca.issue("weaksub", {
        by: "root",
        extensions: CA,
        key: ["-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:1024"],
      });
      return signer("ofweak", { by: "weaksub" }, "weaksub");
    },
  ],
  [
    "a certificate signed with SHA-1",
    "CA signature digest algorithm too weak",
    () => signer("sha1", { digest: "sha1" }),
  ],
  [
    "curve P-521",
    "curve secp521r1 is not one of",
    () => signer("p521", { key: [...EC.slice(0, 3), "ec_paramgen_curve:P-521"] }),
  ],
  [
    "curve secp256k1",
    "curve secp256k1 is not one of",
    () => signer("k1", { key: [...EC.slice(0, 3), "ec_paramgen_curve:secp256k1"] }),
  ],
  [
    "Ed448",
    "a key of this kind is not supported",
    () => {
      ca.issue("ed448", { by: "sub", key: ["-algorithm", "ED448"] });
      return judged({ bundle: chain("ed448", "sub"), signature: Buffer.alloc(114) });
    },
  ],

  // revocation
  [
    "a signer on the list",
    "certificate revoked",
    () => {
      ca.issue("gone", { by: "sub" });
      return judged({
        bundle: chain("gone", "sub"),
        signature: signed("gone"),
        revocation: crl(ca.crl("sub", ["gone"])),
      });
    },
  ],
  [
    "an intermediate on the root's list",
    "certificate 2 of the chain (CN=gonesub): certificate revoked",
    () => {
      ca.issue("gonesub", { by: "root", extensions: CA });
      ca.issue("orphan", { by: "gonesub" });
      const list = ca.crl("root", ["gonesub"]);
      return judged({
        bundle: chain("orphan", "gonesub"),
        signature: signed("orphan"),
        revocation: crl(list),
      });
    },
  ],
  [
    "a list that has run out",
    "CRL has expired",
    () => judged({ revocation: crl(ca.crl("sub", [], -9, -1)) }),
  ],
  ["a list of tomorrow", "CRL is not yet valid", () => judged({ revocation: crl(ca.crl("sub", [], 1, 9)) })],
  [
    "a list by somebody of the same name",
    "CRL signature failure",
    () => {
      ca.issue("subtwin", { cn: "sub", extensions: CA });
      return judged({ revocation: crl(ca.crl("subtwin", [])) });
    },
  ],
  ["a list that is none", "it is no CRL", () => judged({ revocation: crl(Buffer.from("hello")) })],
  [
    "an oversized list",
    `at most ${REVOCATION_MAX} are read`,
    () => judged({ revocation: crl(Buffer.alloc(REVOCATION_MAX + 1)) }),
  ],
  [
    "an answer that says revoked",
    "certificate revoked (answer.ocsp)",
    () => {
      ca.issue("bygone", { by: "sub" });
      ca.crl("sub", ["bygone"]);
      return judged({
        bundle: chain("bygone", "sub"),
        signature: signed("bygone"),
        revocation: ocsp(ca.ocsp("sub", "bygone")),
      });
    },
  ],
  [
    "an answer that says unknown",
    "the responder does not know it",
    () => {
      ca.issue("subclone", { by: "root", key: "sub", cn: "sub", extensions: CA });
      ca.crl("subclone", []);
      return judged({ revocation: ocsp(ca.ocsp("subclone", "good", "sub")) });
    },
  ],
  [
    "an answer by somebody who may not",
    "the response's signature does not hold",
    () => {
      ca.issue("impostor", { by: "sub" });
      return judged({ revocation: ocsp(ca.ocsp("sub", "good", "impostor")) });
    },
  ],
  [
    "an answer that is none",
    "it is no OCSP response",
    () => judged({ revocation: ocsp(Buffer.from("hello")) }),
  ],
  [
    "a responder's refusal",
    'did not answer "successful"',
    () => judged({ revocation: ocsp(Buffer.from("30030a0106", "hex")) }),
  ],
];

for (const [what, words, of] of CASES) test(`${what}: refused`, () => expect(of()).toContain(words));

test("there are enough of them", () => expect(CASES.length).toBeGreaterThanOrEqual(60));

test("without a trusted clock times do not count, everything else does", () => {
  ca.issue("timeless", { by: "sub", from: -9, to: -1 });
  const of = { bundle: chain("timeless", "sub"), signature: signed("timeless"), ignoreTime: true };
  expect(judged(of)).toBe("accepted");
  expect(judged({ ...of, data: flip(DATA, 0) })).toContain(MISMATCH);
  const list = ca.crl("sub", ["timeless"], -9, -1);
  expect(judged({ ...of, revocation: crl(list) })).toContain("certificate revoked");
});
