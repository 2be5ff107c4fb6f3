// Runs a peer in as many processes as it is told, each with its own event loop, all with one key and one client.
import cluster from 'node:cluster';
import { createPrivateKey, generateKeyPairSync } from 'node:crypto';

export const { PORT, ISSUER, CLIENT_ID, CLIENT_SECRET } = process.env;
export const AUDIENCE = ISSUER;
export const SCOPES = ['read', 'write'];
export const LIFETIME_SECONDS = 3600;

export function serve(start) {
  if (cluster.isPrimary) {
    const { privateKey } = generateKeyPairSync('rsa', { modulusLength: 2048 });
    const PRIVATE_KEY = privateKey.export({ type: 'pkcs8', format: 'pem' });
    for (let n = 0; n < Number(process.env.WORKERS); n += 1) cluster.fork({ PRIVATE_KEY });
    return;
  }
  start(createPrivateKey(process.env.PRIVATE_KEY), Number(PORT));
}
