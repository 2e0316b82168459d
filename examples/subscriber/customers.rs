//! Our own side: customers, and the letters that welcome them.

use sqlx::SqliteConnection;

pub const TABLES: &str = "
    CREATE TABLE IF NOT EXISTS customers (
        customer_id TEXT PRIMARY KEY,
        name TEXT NOT NULL,
        email TEXT NOT NULL CHECK (email LIKE '%_@_%')
    );
    CREATE TABLE IF NOT EXISTS letters (
        letter_id INTEGER PRIMARY KEY,
        customer_id TEXT NOT NULL REFERENCES customers,
        subject TEXT NOT NULL
    );
";

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RegisterCustomer {
    pub customer_id: String,
    pub name: String,
    pub email: String,
}

impl RegisterCustomer {
    /// Within the caller's transaction. Carried out twice, it writes two letters: that it is carried out once
    /// is the inbox's business.
    pub async fn carry_out(&self, transaction: &mut SqliteConnection) -> Result<(), sqlx::Error> {
        sqlx::query(
            "INSERT INTO customers (customer_id, name, email) VALUES (?1, ?2, ?3)
             ON CONFLICT (customer_id) DO UPDATE SET name = excluded.name, email = excluded.email",
        )
        .bind(&self.customer_id)
        .bind(&self.name)
        .bind(&self.email)
        .execute(&mut *transaction)
        .await?;
        sqlx::query("INSERT INTO letters (customer_id, subject) VALUES (?1, 'Welcome')")
            .bind(&self.customer_id)
            .execute(&mut *transaction)
            .await?;
        Ok(())
    }
}
