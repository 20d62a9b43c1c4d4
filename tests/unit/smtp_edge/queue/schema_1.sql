BEGIN TRANSACTION;
CREATE TABLE body (queue_id TEXT PRIMARY KEY, header_bytes INTEGER NOT NULL, content BLOB NOT NULL);
INSERT INTO "body" VALUES('0tEnlZ5oOs1p2iCt',42,X'5375626A6563743A2068656C6C6F0D0A46726F6D3A20614073656E6465722E6578616D706C650D0A0D0A626F64790D0A');
INSERT INTO "body" VALUES('0tEnlZ5oPs1p2iCt',42,X'5375626A6563743A2068656C6C6F0D0A46726F6D3A20614073656E6465722E6578616D706C650D0A0D0A626F64790D0A');
INSERT INTO "body" VALUES('0tEnlZ5oRs1p2iCt',42,X'5375626A6563743A2068656C6C6F0D0A46726F6D3A20614073656E6465722E6578616D706C650D0A0D0A626F64790D0A');
INSERT INTO "body" VALUES('0tEnlZ5oTs1p2iCt',42,X'5375626A6563743A2068656C6C6F0D0A46726F6D3A20614073656E6465722E6578616D706C650D0A0D0A626F64790D0A');
CREATE TABLE delivery (
    queue_id TEXT NOT NULL, copy INTEGER NOT NULL, class_id TEXT NOT NULL, received_at INTEGER NOT NULL,
    state TEXT NOT NULL, token INTEGER NOT NULL, claimed_by TEXT NOT NULL, attempts INTEGER NOT NULL, due_at INTEGER,
    last_hop TEXT NOT NULL, last_reply TEXT NOT NULL, in_doubt_hop TEXT NOT NULL, delay_notified INTEGER NOT NULL,
    transfer_token TEXT NOT NULL, recipients TEXT NOT NULL,
    PRIMARY KEY (queue_id, copy)
) WITHOUT ROWID;
INSERT INTO "delivery" VALUES('0tEnlZ5oOs1p2iCt',0,'one',1772366400000000,'queued',0,'',0,NULL,'','','',0,'node-x/0tEnlZ5oOs1p2iCt/0','[["rcpt@example.org","",6]]');
INSERT INTO "delivery" VALUES('0tEnlZ5oPs1p2iCt',0,'two',1772366400000000,'deferred',1,'',1,1772367000000000,'host:a','451 later','',0,'node-x/0tEnlZ5oPs1p2iCt/0','[["rcpt@example.org","",6]]');
INSERT INTO "delivery" VALUES('0tEnlZ5oRs1p2iCt',0,'two',1772366400000000,'held',0,'',0,NULL,'','','',0,'node-x/0tEnlZ5oRs1p2iCt/0','[["rcpt@example.org","",6]]');
INSERT INTO "delivery" VALUES('0tEnlZ5oSs1p2iCt',0,'one',1772366400000000,'relayed',1,'',1,NULL,'','','',0,'node-x/0tEnlZ5oSs1p2iCt/0','[["rcpt@example.org","",6]]');
INSERT INTO "delivery" VALUES('0tEnlZ5oTs1p2iCt',0,'one',1772366340000000,'claimed',1,'f69dc01d45404046b266711dedca7406',0,NULL,'','','',0,'node-x/0tEnlZ5oTs1p2iCt/0','[["rcpt@example.org","",6]]');
CREATE TABLE entry (
    queue_id TEXT PRIMARY KEY, origin TEXT NOT NULL, accept_key TEXT, stored_at INTEGER NOT NULL,
    received_at INTEGER NOT NULL, expires_at INTEGER NOT NULL, finished_at INTEGER,
    size_bytes INTEGER NOT NULL, spool TEXT, document TEXT NOT NULL
);
INSERT INTO "entry" VALUES('0tEnlZ5oOs1p2iCt','node-x/0tEnlZ5oOs1p2iCt',NULL,1772366400000000,1772366400000000,1772798400000000,NULL,48,NULL,'{"sender":"queued@a.example","recipients":[["rcpt@example.org","",6]],"body_type":"7BIT","smtputf8":true,"envid":"abc+2B","ret":"HDRS","requiretls":false,"trace":["node-x","node-y"],"received_field":"Received: from \u00fcber by here\r\n","client":"192.0.2.1 mail.sender.example"}');
INSERT INTO "entry" VALUES('0tEnlZ5oPs1p2iCt','node-x/0tEnlZ5oPs1p2iCt',NULL,1772366400000000,1772366400000000,1772798400000000,NULL,48,NULL,'{"sender":"deferred@a.example","recipients":[["rcpt@example.org","",6]],"body_type":"7BIT","smtputf8":true,"envid":"abc+2B","ret":"HDRS","requiretls":false,"trace":["node-x","node-y"],"received_field":"Received: from \u00fcber by here\r\n","client":"192.0.2.1 mail.sender.example"}');
INSERT INTO "entry" VALUES('0tEnlZ5oRs1p2iCt','node-x/0tEnlZ5oRs1p2iCt',NULL,1772366400000000,1772366400000000,1772798400000000,NULL,48,NULL,'{"sender":"held@a.example","recipients":[["rcpt@example.org","",6]],"body_type":"7BIT","smtputf8":true,"envid":"abc+2B","ret":"HDRS","requiretls":false,"trace":["node-x","node-y"],"received_field":"Received: from \u00fcber by here\r\n","client":"192.0.2.1 mail.sender.example"}');
INSERT INTO "entry" VALUES('0tEnlZ5oSs1p2iCt','node-x/0tEnlZ5oSs1p2iCt',NULL,1772366400000000,1772366400000000,1772798400000000,1772366400000000,48,NULL,'{"sender":"relayed@a.example","recipients":[["rcpt@example.org","",6]],"body_type":"7BIT","smtputf8":true,"envid":"abc+2B","ret":"HDRS","requiretls":false,"trace":["node-x","node-y"],"received_field":"Received: from \u00fcber by here\r\n","client":"192.0.2.1 mail.sender.example"}');
INSERT INTO "entry" VALUES('0tEnlZ5oTs1p2iCt','node-x/0tEnlZ5oTs1p2iCt',NULL,1772366400000000,1772366340000000,1772798340000000,NULL,48,NULL,'{"sender":"claimed@a.example","recipients":[["rcpt@example.org","",6]],"body_type":"7BIT","smtputf8":true,"envid":"abc+2B","ret":"HDRS","requiretls":false,"trace":["node-x","node-y"],"received_field":"Received: from \u00fcber by here\r\n","client":"192.0.2.1 mail.sender.example"}');
CREATE TABLE note (
    queue_id TEXT NOT NULL, at INTEGER NOT NULL, event TEXT NOT NULL,
    hop TEXT NOT NULL, reply TEXT NOT NULL, detail TEXT NOT NULL
);
INSERT INTO "note" VALUES('0tEnlZ5oPs1p2iCt',1772366400000000,'attempt','host:a','250 ok','detail');
INSERT INTO "note" VALUES('0tEnlZ5oRs1p2iCt',1772366400000000,'held','','','by operator');
INSERT INTO "note" VALUES('0tEnlZ5oSs1p2iCt',1772366400000000,'relayed','host:a','250 ok','detail');
CREATE UNIQUE INDEX entry_accept_key ON entry (accept_key) WHERE accept_key IS NOT NULL;
CREATE INDEX entry_origin ON entry (origin);
CREATE INDEX entry_finished ON entry (finished_at) WHERE finished_at IS NOT NULL;
CREATE INDEX delivery_queued ON delivery (queue_id) WHERE state = 'queued';
CREATE INDEX delivery_due ON delivery (due_at) WHERE state = 'deferred';
CREATE INDEX delivery_class_due ON delivery (class_id, due_at) WHERE state = 'deferred';
CREATE INDEX delivery_claimed ON delivery (queue_id) WHERE state = 'claimed';
CREATE INDEX note_queue_id ON note (queue_id);
COMMIT;
PRAGMA user_version = 1;
