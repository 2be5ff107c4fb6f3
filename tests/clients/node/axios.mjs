// axios: Basic from its `auth` option (raw), and credentials in the body.

import axios from 'axios'

import { failure, task, tell } from './task.mjs'

const { tokenUrl, jwksUrl, id, secret } = task
const auth = { username: id, password: secret }
const form = (more = {}) => new URLSearchParams({ grant_type: 'client_credentials', ...more })
const describe = ({ name, code, response }) => ({
  name,
  code,
  status: response?.status,
  data: response?.data,
  challenge: response?.headers['www-authenticate'],
})

const keys = await axios.get(jwksUrl)
tell({
  basic: (await axios.post(tokenUrl, form(), { auth })).data,
  body: (await axios.post(tokenUrl, form({ client_id: id, client_secret: secret }))).data,
  object: (await axios.post(tokenUrl, { grant_type: 'client_credentials' }, {
    auth,
    headers: { 'Content-Type': 'application/x-www-form-urlencoded' },
  })).data,
  wrongSecret: await failure(() => axios.post(tokenUrl, form(), { auth: { ...auth, password: 'wrong' } }), describe),
  excessiveScope: await failure(() => axios.post(tokenUrl, form({ scope: 'read delete' }), { auth }), describe),
  multipart: await failure(() => axios.postForm(tokenUrl, { grant_type: 'client_credentials' }, { auth }), describe),
  unchangedKeys: (await axios.get(jwksUrl, {
    headers: { 'If-None-Match': keys.headers.etag },
    validateStatus: (status) => status === 304,
  })).status,
})
