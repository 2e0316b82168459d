//! The domain of this service: customers and their welcome letters.

use sqlx::SqliteConnection;

pub(crate) const TABLES: &str = "
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
pub(crate) struct RegisterCustomer {
    pub customer_id: String,
    pub name: String,
    pub email: String,
}

impl RegisterCustomer {
    /// Executes the command in the caller's transaction. Executing it twice writes two letters; the inbox prevents
    /// that.
    pub(crate) async fn carry_out(&self, transaction: &mut SqliteConnection) -> Result<(), sqlx::Error> {
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
